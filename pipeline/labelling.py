"""Image records to rows of the output: decoded ahead, labelled in batches, each image accounted for.

`label_records` is the fast way. `label_carefully` is for a shard that has cost a worker: one step after another, each
noted before it is taken, so that whoever finds the worker dead knows at which image it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.config import LabelConfig
from pipeline.decoding import Decoding
from pipeline.errors import RunError
from pipeline.labelers import Labeler
from pipeline.records import NO_INSTANCES, ROW_BITS, ImageLabels, ImageRecord, Instances, Pixels, Shard
from pipeline.trails import Step

#: Images decoded ahead of the labeler, as a multiple of its batch.
BATCHES_AHEAD = 2

#: An image of a batch: its row in the shard, its record, and its pixels or the reason why there are none.
Decoded: TypeAlias = tuple[int, ImageRecord, Pixels | str]


def label_records(
    shard: Shard, records: Iterable[ImageRecord], *, labeler: Labeler, config: LabelConfig, decoding: Decoding
) -> Iterator[list[ImageLabels]]:
    """Image records -> rows of the output, batch after batch, in the order of the records."""
    size = config.labeler.batch_size
    images = decoding.stream(records, ahead=BATCHES_AHEAD * size, ahead_bytes=config.run.prefetch_bytes)
    decoded = ((row, record, pixels) for row, (record, pixels) in enumerate(images))
    while batch := list(islice(decoded, size)):
        yield _label(shard, batch, labeler)
        del batch  # or two of them are in memory while the next one is gathered


def label_carefully(
    shard: Shard,
    records: Iterable[ImageRecord],
    *,
    labeler: Labeler,
    config: LabelConfig,
    decoding: Decoding,
    suspects: range,
    note: Callable[[Step, int, Sequence[str], int], None],
) -> Iterator[list[ImageLabels]]:
    """As `label_records`, without anything ahead, and with a note of each step before it is taken.

    Batches are the same as there, so that the labels are, but for `suspects`: the rows at which the attempt before
    ended go one by one, so that the note names the very image.

    Args:
        shard: the shard.
        records: its images.
        labeler: what labels them.
        config: the batch size.
        decoding: what decodes them.
        suspects: rows of the shard.
        note: called with the step, its first row, the keys of its images (none before they are read), and their number.
    """
    rest, row = iter(records), 0
    while True:
        size = config.labeler.batch_size - row % config.labeler.batch_size
        if suspects and row < suspects.stop:
            size = 1 if row >= suspects.start else min(size, suspects.start - row)
        note("reading", row, (), size)
        batch: list[Decoded] = []
        for record in islice(rest, size):
            if size == 1:
                note("decoding", row, (record.key,), 1)
            batch.append((row + len(batch), record, decoding.one(record)))
        if not batch:
            return
        note("labeling", row, [record.key for _, record, _ in batch], len(batch))
        yield _label(shard, batch, labeler)
        row += len(batch)


def _label(shard: Shard, batch: Sequence[Decoded], labeler: Labeler) -> list[ImageLabels]:
    """Label the images of a batch that could be decoded, and account for the others."""
    good = [pixels for _, _, pixels in batch if not isinstance(pixels, str)]
    found = iter(_checked(labeler, good) if good else ())
    rows = []
    for row, record, pixels in batch:
        image_id = record.image_id if record.image_id is not None else shard.number << ROW_BITS | row
        if isinstance(pixels, str):
            rows.append(_row(record, image_id, (0, 0), NO_INSTANCES, error=pixels))
        else:
            height, width, _ = pixels.shape
            rows.append(_row(record, image_id, (height, width), next(found)))
    return rows


def _checked(labeler: Labeler, images: Sequence[Pixels]) -> list[Instances]:
    """What the labeler makes of the images, if it keeps its promises; a class of the user's own might not.

    Raises:
        RunError: it does not.
    """
    found = labeler.label(images)
    name = type(labeler).__name__
    if len(found) != len(images):
        raise RunError(f"the labeler {name} gave {len(found)} results for {len(images)} images; it must give one each")
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
                f"the labeler {name} gave instances whose {wrong[0]} is missing, not finite, or not as long as counts"
            )
    return found


def _row(
    record: ImageRecord, image_id: int, size: tuple[int, int], instances: Instances, error: str | None = None
) -> ImageLabels:
    return ImageLabels(
        key=record.key,
        image_id=image_id,
        uri=record.uri,
        height=size[0],
        width=size[1],
        instances=instances,
        status="quarantined" if error is not None else "labelled" if len(instances) else "empty",
        error=error,
    )
