"""Image records to rows of the output: decoded ahead, labelled in batches, encoded behind, each image accounted for.

`label_records` is the fast way. `label_carefully` is for a shard that has cost a worker: one step after another, each
noted before it is taken, so that whoever finds the worker dead knows at which image it was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline import batches
from pipeline.config import LabelConfig
from pipeline.decoding import Decoding
from pipeline.errors import RunError
from pipeline.labelers import Prepared, StagedLabeler, batch_size, name_of
from pipeline.records import NO_INSTANCES, ROW_BITS, ImageLabels, ImageRecord, Instances, Picture, Shard
from pipeline.stages import Stages
from pipeline.trails import Step

#: Images decoded ahead of the labeler, and the most that one waits for others like it, as multiples of a batch.
BATCHES_AHEAD, BATCHES_WAITED = 2, 16
#: Shares of `run.prefetch_bytes`: of what is decoded ahead, and of what waits for its like. The rest is for that of the
#: next shard, when this one ends.
SHARE_AHEAD, SHARE_WAITING = 0.25, 0.375

#: Rows of the output, with their numbers in the shard.
Rows: TypeAlias = list[tuple[int, ImageLabels]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image on its way to a row, whose number in the shard is `row`.

    prepared: what the model takes; None where there is nothing to see, for the reason `error`, and once it was seen.
    """

    row: int
    record: ImageRecord
    height: int = 0
    width: int = 0
    prepared: Prepared | None = None
    error: str | None = None


def label_records(
    shard: Shard,
    records: Iterable[ImageRecord],
    *,
    labeler: StagedLabeler,
    config: LabelConfig,
    decoding: Decoding,
    all_read: Callable[[], None] = lambda: None,
    may_find: Callable[[], None] = lambda: None,
    stages: Stages | None = None,
) -> Iterator[Callable[[], Rows]]:
    """Image records -> for each batch, what is left to do when the model has seen it: to encode its masks into rows.

    Images that are alike go through the model together, so the rows are not in the order of the records. The batches
    depend on the records alone, so that another attempt gives the same labels to the last bit.

    Args:
        shard: the shard.
        records: its images.
        labeler: what labels them.
        config: batch size and bounds.
        decoding: what decodes them.
        all_read: is called, in another thread, when the last record has been read.
        may_find: is called before the first batch goes through the model, and may wait.
        stages: what measures the steps.
    """
    size, timed = batch_size(labeler, config.labeler), stages or Stages()
    images = decoding.stream(
        timed.drawing("read", records),
        ahead=BATCHES_AHEAD * size,
        ahead_bytes=int(SHARE_AHEAD * config.run.prefetch_bytes),
        then=partial(_prepared, labeler),
        at_end=all_read,
        stages=timed,
    )
    first = True
    for batch in batched((image_of(row, record, made) for row, (record, made) in enumerate(images)), size, config):
        if first:
            may_find()
            first = False
        yield _found(shard, batch, labeler, timed)
        del batch  # or two of them are in memory while the next one is gathered


def label_carefully(
    shard: Shard,
    records: Iterable[ImageRecord],
    *,
    labeler: StagedLabeler,
    config: LabelConfig,
    decoding: Decoding,
    suspects: range,
    note: Callable[[Step, int, Sequence[str], int], None],
) -> Iterator[Callable[[], Rows]]:
    """As `label_records`, in the order of the records, without anything ahead, and with a note before each step.

    The rows at which the attempt before ended, `suspects`, go one by one, so that the note names the very image. The
    batches are others, so the last bits of a score may be.

    Args:
        shard: the shard.
        records: its images.
        labeler: what labels them.
        config: the batch size.
        decoding: what decodes them.
        suspects: rows of the shard.
        note: called with the step, its first row, the keys of its images (none before they are read), and their number.
    """
    rest, row, usual = iter(records), 0, batch_size(labeler, config.labeler)
    while True:
        size = usual - row % usual
        if suspects and row < suspects.stop:
            size = 1 if row >= suspects.start else min(size, suspects.start - row)
        note("reading", row, (), size)
        decoded: list[tuple[ImageRecord, Picture | str]] = []
        for record in islice(rest, size):
            if size == 1:
                note("decoding", row, (record.key,), 1)
            decoded.append((record, decoding.one(record)))
        if not decoded:
            return
        note("labeling", row, [record.key for record, _ in decoded], len(decoded))
        images = [
            image_of(number, record, picture if isinstance(picture, str) else _prepared(labeler, picture))
            for number, (record, picture) in enumerate(decoded, start=row)
        ]
        held = sum(map(_nbytes, images))
        of_one_kind = batches.alike(images, _kind, _nbytes, size=usual, window=usual, window_bytes=held)
        yield partial(list, [row for batch in of_one_kind for row in _found(shard, batch, labeler, Stages())()])
        row += len(decoded)


def _prepared(labeler: StagedLabeler, picture: Picture) -> tuple[int, int, Prepared]:
    """Height and width of an image, and what the model takes of it."""
    height, width = picture.height, picture.width
    return height, width, labeler.prepare(picture.pixels, (height, width))


def image_of(row: int, record: ImageRecord, made: tuple[int, int, Prepared] | str) -> Image:
    """An image by its height and width and what the model takes, or by the reason why there is nothing to see."""
    if isinstance(made, str):
        return Image(row=row, record=record, error=made)
    height, width, prepared = made
    return Image(row=row, record=record, height=height, width=width, prepared=prepared)


def batched(images: Iterable[Image], size: int, config: LabelConfig) -> Iterator[list[Image]]:
    """Batches of images that may go through the model together; those with nothing to see are among themselves."""
    return batches.alike(
        images,
        _kind,
        _nbytes,
        size=size,
        window=BATCHES_WAITED * size,
        window_bytes=int(SHARE_WAITING * config.run.prefetch_bytes),
    )


def _kind(image: Image) -> Hashable:
    """Equal for images that may share a batch."""
    return None if image.prepared is None else (image.prepared.like,)


def _nbytes(image: Image) -> int:
    return 0 if image.prepared is None else image.prepared.nbytes


def _found(shard: Shard, batch: Sequence[Image], labeler: StagedLabeler, timed: Stages) -> Callable[[], Rows]:
    """Let the model see a batch of one kind -> what is left to do."""
    good = [image.prepared for image in batch if image.prepared is not None]
    with timed("model"):
        found = labeler.find(good) if good else None
    seen = [replace(image, prepared=None) for image in batch]

    def finish() -> Rows:
        with timed("encode"):
            instances = iter(_checked(labeler, labeler.encode(found), len(good)) if good else ())
        return [
            (image.row, row_of(shard, image, NO_INSTANCES if image.error is not None else next(instances)))
            for image in seen
        ]

    return finish


def _checked(labeler: StagedLabeler, found: list[Instances], images: int) -> list[Instances]:
    """What the labeler made of the images, if it keeps its promises; a class of the user's own might not.

    Raises:
        RunError: it does not.
    """
    if len(found) != images:
        raise RunError(
            f"the labeler {name_of(labeler)} gave {len(found)} results for {images} images; it must give one each"
        )
    for x in found:
        columns: dict[str, npt.NDArray[Any]] = {
            "category_ids": x.category_ids,
            "scores": x.scores,
            "boxes": x.boxes,
            "areas": x.areas,
            **x.quality,
        }
        wrong = [column for column, values in columns.items() if len(values) != len(x)]
        wrong += [column for column in labeler.quality if column not in x.quality and len(x)]
        wrong += [column for column in ("scores", "boxes") if not np.isfinite(columns[column]).all()]
        if wrong:
            raise RunError(
                f"the labeler {name_of(labeler)} gave instances whose {wrong[0]} is missing, not finite, or not as "
                "long as counts"
            )
    return found


def row_of(shard: Shard, image: Image, instances: Instances) -> ImageLabels:
    """The row of an image of the shard; one with nothing to see is quarantined for its reason."""
    record = image.record
    return ImageLabels(
        key=record.key,
        image_id=record.image_id if record.image_id is not None else shard.number << ROW_BITS | image.row,
        uri=record.uri,
        height=image.height,
        width=image.width,
        instances=instances,
        status="quarantined" if image.error is not None else "labelled" if len(instances) else "empty",
        error=image.error,
    )
