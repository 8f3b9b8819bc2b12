"""Whose images answers are: by the shard that the tool kept, else by one pass over the keys of the run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from pipeline import ledger
from pipeline.errors import UserError
from pipeline.records import ImageLabels
from pipeline.review.answers import Answer
from pipeline.runs import Labels
from pipeline.shard_list import ShardList
from pipeline.store import redact

#: The image files of a review package, `<rank>-<shard id>-<image id>.<suffix>`, which annotators may move about.
_OURS = re.compile(r"\d{5,}-([0-9a-f]{20})-(\d+)\.\w+")
#: Those of an export, where each shard has a folder of its own.
_FOLDER = re.compile(r"([0-9a-f]{20})/.+")
_SUFFIX = re.compile(r"\.(jpe?g|png|webp|tiff?|bmp)$", re.IGNORECASE)


def file_name(rank: int, shard_id: str, image_id: int, name: str) -> str:
    """The name of an image in a review package: by rank, and found again without its folder.

    >>> file_name(3, "a" * 20, 70, "train/x.jpg")
    '00003-aaaaaaaaaaaaaaaaaaaa-70.jpg'
    """
    return f"{rank:05d}-{shard_id}-{image_id}.{name.rpartition('.')[2]}"


def locate(labels: Labels, answers: Sequence[Answer]) -> Iterator[tuple[str, list[tuple[Answer, ImageLabels]]]]:
    """Each answer with the row that stands for its image, by shard id.

    Raises:
        UserError: an image is not in the run, several have its name, or two answers are of one image.
        StoreError: labels cannot be read.
    """
    by_shard: defaultdict[str, list[Answer]] = defaultdict(list)
    anywhere: list[Answer] = []
    told = {shard_id for one in answers if (shard_id := _shard_id(one)) is not None}
    known = ShardList.of(labels.manifest.shards).known(told)
    for one in answers:
        shard_id = _shard_id(one)
        if one.shard_id is not None and one.shard_id not in known:
            raise UserError(f"{one.where} is of shard {one.shard_id}, which {redact(labels.uri)} does not have")
        if shard_id is not None and shard_id in known:
            by_shard[shard_id].append(one)
        else:
            anywhere.append(one)
    found = _scanned(labels, anywhere)
    for place, theirs in by_shard.items():
        found[place] += _in_shard(labels, place, theirs)
    for place, pairs in sorted(found.items()):
        seen: dict[str, Answer] = {}
        for one, row in pairs:
            if row.key in seen:
                raise UserError(f"{one.where} and {seen[row.key].where} are of the same image, {row.key}")
            seen[row.key] = one
        yield place, pairs


def _in_shard(labels: Labels, shard_id: str, answers: Sequence[Answer]) -> list[tuple[Answer, ImageLabels]]:
    commit = ledger.read_commit(labels.store, labels.uri, shard_id)
    if commit is None:
        raise UserError(f"{answers[0].where} is of shard {shard_id}, which the run has not done")
    index = _Index(answers)
    for row in labels.rows(commit):
        index.offer(shard_id, row)
    return [(one, row) for one, _, row in index.found()]


def _scanned(labels: Labels, answers: Sequence[Answer]) -> defaultdict[str, list[tuple[Answer, ImageLabels]]]:
    """Those that may be anywhere in the run."""
    found: defaultdict[str, list[tuple[Answer, ImageLabels]]] = defaultdict(list)
    if answers:
        index = _Index(answers)
        for commit in labels.commits():
            for row in labels.rows(commit):
                index.offer(commit.shard_id, row)
        for one, shard_id, row in index.found():
            found[shard_id].append((one, row))
    return found


class _Index:
    """Answers that look for their rows."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers
        self._names: defaultdict[str, list[int]] = defaultdict(list)
        self._ids: defaultdict[int, list[int]] = defaultdict(list)
        self._rows: list[list[tuple[str, ImageLabels]]] = [[] for _ in answers]
        for number, one in enumerate(answers):
            for name in _names(one):
                self._names[name].append(number)
            if (image_id := _image_id(one)) is not None:
                self._ids[image_id].append(number)

    def offer(self, shard_id: str, row: ImageLabels) -> None:
        """A row that one of them may look for."""
        for number in {*self._names.get(row.key, ()), *self._ids.get(row.image_id, ())}:
            self._rows[number].append((shard_id, row))

    def found(self) -> Iterator[tuple[Answer, str, ImageLabels]]:
        """Each with its row: the image id decides where several have the name."""
        for one, rows in zip(self._answers, self._rows, strict=True):
            if len(rows) > 1:
                rows = [(shard_id, row) for shard_id, row in rows if row.image_id in (one.image_id, _image_id(one))]
            if not rows:
                raise UserError(f"{one.where}: {one.name!r} is no image of the run, or one of several of that name")
            if len(rows) > 1:
                raise UserError(f"{one.where}: {one.name!r} is the name of {len(rows)} images of the run")
            yield one, *rows[0]


def _shard_id(one: Answer) -> str | None:
    if one.shard_id is not None:
        return one.shard_id
    found = _OURS.fullmatch(one.name.rpartition("/")[2]) or _FOLDER.fullmatch(one.name)
    return None if found is None else found.group(1)


def _image_id(one: Answer) -> int | None:
    """The image id that a file name of ours tells; what other tools call so may be a number of their own."""
    base = one.name.rpartition("/")[2]
    if ours := _OURS.fullmatch(base):
        return int(ours.group(2))
    told = re.search(r"_(\d+)_*$", _SUFFIX.sub("", base))
    return int(told.group(1)) if told and _FOLDER.fullmatch(one.name) else None


def _names(one: Answer) -> set[str]:
    """The keys that an image may have, going by its file name."""
    name = one.name
    if one.shard_id is not None:
        return {name}
    rest = name.partition("/")[2] if _FOLDER.fullmatch(name) else name
    return {name, rest, _SUFFIX.sub("", rest)} - {""}
