"""What the user named, as shards: once for a run, in a fixed order, so that the same input gives the same plan.

A tar or Parquet object is a shard. Single images (of prefixes, globs and COCO files) are grouped: a *listing*, with a
JSON line for each image, becomes an object of the run, and that is the shard.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import get_args

from pipeline.config import InputFormat
from pipeline.errors import AccessError, NotFoundError, UserError
from pipeline.records import NUMBER_BITS, ROW_BITS, Shard, ShardFormat
from pipeline.sources.coco import coco_images
from pipeline.sources.common import ReadOptions, has_image_name
from pipeline.sources.listings import Listed, to_line
from pipeline.sources.parquets import check_columns
from pipeline.store import ObjectInfo, Store, absolute, join, name, redact
from pipeline.store.uris import local_path, selection

logger = logging.getLogger(__name__)

_SUFFIXES: dict[InputFormat, str] = {
    "tar": ".tar, .tar.gz and .tgz",
    "parquet": ".parquet",
    "images": ".jpg, .jpeg, .png, .webp, .tif, .tiff and .bmp",
    "coco": ".json",
}
#: What `auto` looks for, and what it takes where there is nothing of those: beside images, a JSON is a sidecar.
_PACKED: tuple[InputFormat, ...] = ("tar", "parquet", "images")
_COCO: tuple[InputFormat, ...] = ("coco",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A shard of the plan.

    images: how many it holds, where that is known without reading it. listing: where the shard is one, the object to
    write at `shard.uri` below the run, once.
    """

    shard: Shard
    images: int | None = None
    listing: bytes | None = None


def plan(
    uris: Sequence[str],
    *,
    format: InputFormat,
    images_per_shard: int,
    store: Store,
    images_root: str | None = None,
    image_column: str | None = None,
    key_column: str | None = None,
) -> Iterator[Planned]:
    """The shards of an input, sorted by URI.

    An image's key is its path below the prefix (of a glob: below the last folder before the first wildcard), its COCO
    file_name, the name of its tar member or its Parquet key: the same text, however the same images are packed.

    `Shard.number` comes from a hash of the URI (of a listing: of its content). Where two shards agree in it, the later
    one takes the next free number.

    Args:
        uris: objects, prefixes ("directories") or globs; relative ones start at the working directory.
        format: `auto` goes by the names.
        images_per_shard: how many images of `images` and `coco` make a shard, at most 2^22.
        store: where to look.
        images_root: for `coco`, the folder in which file_names start (see `coco_images`).
        image_column: for `parquet`, the column of the images where it has no usual name.
        key_column: the same for the keys.

    Raises:
        UserError: nothing is there, it may not be read, or it is not what `format` says.
        StoreError: the storage does not answer.
    """
    if format not in get_args(InputFormat):
        raise UserError(f"input.format is {format!r}; accepted are {', '.join(get_args(InputFormat))}.")
    if not 1 <= images_per_shard <= 1 << ROW_BITS:
        raise UserError(f"input.images_per_shard is {images_per_shard}; accepted are 1 to {1 << ROW_BITS}.")
    options = ReadOptions(max_image_bytes=0, image_column=image_column, key_column=key_column)
    ids: set[str] = set()
    numbers: set[int] = set()
    for planned in _planned(_distinct(uris), format, images_per_shard, store, images_root, options):
        shard, number = planned.shard, planned.shard.number
        if planned.listing is not None:
            if shard.id in ids:  # two COCO files list the same images
                continue
            ids.add(shard.id)
        while number in numbers:
            number = (number + 1) % (1 << NUMBER_BITS)
        numbers.add(number)
        yield replace(planned, shard=replace(shard, number=number))


def _distinct(uris: Sequence[str]) -> list[str]:
    """The URIs, absolute and sorted; refused where one lies in another, since its images would come twice."""
    places = (absolute(local_path(uri)) for uri in uris)
    distinct = {place.rstrip("/"): place for place in places}
    for uri in distinct:
        above = uri
        while above := above.rpartition("/")[0]:
            if above in distinct:
                raise UserError(f"input.uri names {redact(uri)}, which is a part of {redact(above)} already.")
    if not distinct:
        raise UserError("input.uri is empty; accepted are objects, prefixes and globs.")
    return [distinct[uri] for uri in sorted(distinct)]


def _planned(
    uris: Sequence[str], format: InputFormat, size: int, store: Store, images_root: str | None, options: ReadOptions
) -> Iterator[Planned]:
    """The shards of all URIs, with the numbers that they would like to have."""
    taken: set[str] = set()
    for uri in uris:
        kind, chosen = _chosen(uri, _found(uri, store), format)
        if odd := next((info.uri for info in chosen if not _is_text(info.uri)), None):
            shown = redact(odd).encode("utf-8", "backslashreplace").decode()
            raise UserError(f"{shown} has a name that is not valid UTF-8, which no output can hold; rename it.")
        if len(uris) > 1:
            chosen = [info for info in chosen if info.uri not in taken]
            taken.update(info.uri for info in chosen)
        if kind == "images":
            yield from _listings((_listed(uri, info) for info in _let_go(chosen)), size)
        elif kind == "coco":
            for info in chosen:
                yield from _listings(coco_images(info.uri, images_root, store=store), size)
        else:
            if kind == "parquet" and chosen:
                check_columns(chosen[0].uri, chosen[0].etag, store=store, options=options)
            yield from (_object(info, "tar" if kind == "tar" else "parquet") for info in _let_go(chosen))


def _is_text(uri: str) -> bool:
    """Whether it can be encoded; the bytes of a file's name that are no UTF-8 stand in it as lone surrogates."""
    return uri.isascii() or not any("\ud800" <= character <= "\udfff" for character in uri)


def _let_go(infos: list[ObjectInfo]) -> Iterator[ObjectInfo]:
    """The items of a list, which is empty afterwards: what is planned takes the place of what was listed."""
    infos.reverse()
    while infos:
        yield infos.pop()


def _found(uri: str, store: Store) -> list[ObjectInfo]:
    try:
        found = sorted(store.list(uri), key=lambda info: info.uri)
    except (NotFoundError, AccessError) as error:
        raise UserError(f"input.uri cannot be read: {error}") from error
    if not found:
        raise UserError(f"input.uri: there is nothing at {redact(uri)}.")
    return found


def _chosen(uri: str, found: list[ObjectInfo], format: InputFormat) -> tuple[InputFormat, list[ObjectInfo]]:
    """The format of what is at a URI, and the objects there that have it."""
    named = [_kind(info) for info in found]
    kinds, kind = Counter(named), format
    if kind == "auto":
        present = [kind for kind in _PACKED if kinds[kind]] or [kind for kind in _COCO if kinds[kind]]
        if len(present) > 1:
            counts = ", ".join(f"{kinds[kind]} of {kind}" for kind in present)
            raise UserError(
                f"{redact(uri)} holds files of several formats ({counts}); set input.format to the one meant."
            )
        if not present:
            accepted = "; ".join(f"{kind} ({suffixes})" for kind, suffixes in _SUFFIXES.items())
            raise UserError(
                f"{redact(uri)} holds nothing whose name tells an input format, but {_counted(found)}; name or set "
                f"input.format to one of {accepted}."
            )
        kind = present[0]
    chosen = [info for info, its_kind in zip(found, named, strict=True) if its_kind == kind]
    if not chosen and len(found) == 1 and found[0].uri == uri:
        return kind, found  # named outright, whatever its name
    if not chosen:
        raise UserError(
            f"{redact(uri)} holds nothing of input.format {kind} ({_SUFFIXES[kind]}), but {_counted(found)}."
        )
    if len(chosen) < len(found):
        others = (info for info, its_kind in zip(found, named, strict=True) if its_kind != kind)
        logger.info("%s: left out as no %s: %s", redact(uri), kind, _counted(others))
    return kind, chosen


def _kind(info: ObjectInfo) -> InputFormat | None:
    """The format that an object's name tells."""
    file = name(info.uri).lower()
    if file.startswith("._"):  # what macOS adds
        return None
    if file.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    if file.endswith(".parquet"):
        return "parquet"
    if file.endswith(".json"):
        return "coco"
    return "images" if has_image_name(file) else None


def _counted(infos: Iterable[ObjectInfo]) -> str:
    """How many files of which extensions: ".txt 3, .md 1"."""
    stems = (name(info.uri).lower().rpartition(".") for info in infos)
    extensions = Counter(f".{extension}" if stem else "without extension" for stem, _, extension in stems)
    most = ", ".join(f"{extension} {count}" for extension, count in extensions.most_common(5))
    return most + (", ..." if len(extensions) > 5 else "")


def _object(info: ObjectInfo, format: ShardFormat) -> Planned:
    """A tar or Parquet object as a shard."""
    return Planned(
        shard=Shard(
            id=hashlib.sha256(f"{info.uri}\0{info.etag}".encode("utf-8", "surrogateescape")).hexdigest()[:20],
            uri=info.uri,
            format=format,
            bytes=info.bytes,
            etag=info.etag,
            number=_number(info.uri.encode("utf-8", "surrogateescape")),
        )
    )


def _listings(images: Iterable[Listed], size: int) -> Iterator[Planned]:
    """Images in groups of `size` as shards."""
    rest = iter(images)
    while group := list(islice(rest, size)):
        content = b"".join(map(to_line, group))
        checksum = hashlib.sha256(content).hexdigest()
        shard = Shard(
            id=checksum[:20],
            uri=f"inputs/{checksum[:20]}.jsonl",
            format="listing",
            bytes=sum(image.bytes or 0 for image in group),
            etag=checksum,
            number=_number(content),
        )
        yield Planned(shard=shard, images=len(group), listing=content)


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") >> (32 - NUMBER_BITS)


def _listed(uri: str, info: ObjectInfo) -> Listed:
    """An image found at a prefix, at a glob, or by its own URI."""
    if info.uri == uri:
        key = name(uri)
    else:
        base = join(uri, "")
        key = info.uri.removeprefix(base if info.uri.startswith(base) else selection(uri).directory)
    return Listed(key=key, uri=info.uri, bytes=info.bytes, etag=info.etag)
