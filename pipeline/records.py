"""The nouns of the pipeline: frozen, without behaviour beyond a derived figure or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1

#: An image as (height, width, 3) uint8 RGB.
Pixels: TypeAlias = npt.NDArray[np.uint8]

ShardFormat: TypeAlias = Literal["tar", "parquet", "listing"]
Status: TypeAlias = Literal["labelled", "empty", "quarantined"]

#: Why an image is quarantined: the part of `ImageLabels.error` before the first colon.
REASONS = (
    "empty",  # no bytes
    "too_large",  # over limits.max_image_bytes or limits.max_image_pixels
    "not_an_image",  # the bytes are no image
    "unsupported",  # an image, but not JPEG, PNG, WebP, TIFF or BMP
    "truncated",  # the bytes end too early
    "undecodable",  # damaged in another way
    "crashed",  # its decoder died or hung, in a process of its own (limits.isolate_decoding)
    "missing",  # named by the input, but not there
    "unreadable",  # there, but it cannot be read
    "duplicate",  # a second image of the same key in one shard
)

#: An image id is `Shard.number << ROW_BITS | row`, below 2^53, so that JSON readers with doubles keep it exact.
NUMBER_BITS, ROW_BITS = 31, 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A class of the data set, with the data set's own id."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A unit of work: what one commit accounts for.

    `id` is 20 hex digits of a hash of (uri, etag): never a rank or a position. `uri` names a tar or Parquet object; for
    `listing` (a group of single images) it is relative to the run. `number`, unique within the run and derived from
    `uri`, is the upper part of its image ids.
    """

    id: str
    uri: str
    format: ShardFormat
    bytes: int
    etag: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A decoded image. `height` and `width` are its own; `pixels` may have been reduced, where that is asked for."""

    pixels: Pixels
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image of a shard as it was stored. `key` is unique within its shard.

    `uri` says where the bytes are (the image's own URI, or that of the tar or Parquet around it). `image_id` is the
    input's own id where it has one (COCO), else None. `error` is set, and `data` empty, where the bytes could not be
    had.
    """

    key: str
    uri: str
    data: bytes = b""
    image_id: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """The instances of one image, best score first, as N-long columns that Arrow takes as they are.

    category_ids int32 [N] (the data set's ids); scores float32 [N] in 0..1; boxes float32 [N, 4] (x, y, w, h in pixels,
    the tight box of the mask); areas int64 [N] in pixels; counts: N compressed COCO RLE strings at image size; quality:
    float32 [N] by column name.
    """

    category_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    areas: npt.NDArray[np.int64]
    counts: tuple[str, ...]
    quality: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counts)

    def unknown(self) -> npt.NDArray[np.float32]:
        """A quality column without a value for any of them."""
        return np.full(len(self), np.nan, np.float32)

    def above(self, score: float) -> Instances:
        """Those of at least this score."""
        return self.where(self.scores >= score)

    def where(self, kept: npt.NDArray[np.bool_]) -> Instances:
        """Those chosen by `kept`, bool [N]."""
        if kept.all():
            return self
        return Instances(
            category_ids=self.category_ids[kept],
            scores=self.scores[kept],
            boxes=self.boxes[kept],
            areas=self.areas[kept],
            counts=tuple(counts for counts, keep in zip(self.counts, kept, strict=True) if keep),
            quality={name: values[kept] for name, values in self.quality.items()},
        )


NO_INSTANCES = Instances(
    category_ids=np.zeros(0, np.int32),
    scores=np.zeros(0, np.float32),
    boxes=np.zeros((0, 4), np.float32),
    areas=np.zeros(0, np.int64),
    counts=(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLabels:
    """One row of the output. A quarantined image has `error`, no instances, and height = width = 0.

    `corrected` is 0 for a row as the model labelled it, else the number of the corrections that it comes from.
    """

    key: str
    image_id: int
    uri: str
    height: int
    width: int
    instances: Instances
    status: Status
    error: str | None = None
    corrected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A data object of a commit: its path relative to the run, its size and its checksum."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Another run, whose data objects a commit names as its own."""

    uri: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The one claim that a shard is done. images = labelled + empty + quarantined.

    `attempt` is unique to the try that wrote it. `outputs` is keyed by format. `reasons` counts the quarantined images
    by reason. `seconds` is how long its worker's model was there for this shard, until it had seen the last batch; what
    is done for it beside another shard is not counted twice. `stages` are seconds of the steps, which overlap; `worker`
    is where it was done, `finished` when, by the clock there: both are shown and never compared. `base` is set where
    the shard was not labelled anew: the outputs lie in that run.
    """

    shard_id: str
    attempt: str
    outputs: Mapping[str, Output]
    images: int
    labelled: int
    empty: int
    quarantined: int
    instances: int
    reasons: Mapping[str, int]
    fingerprint: str
    seconds: float
    version: str
    stages: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""
    finished: str = ""
    base: Base | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a shard is not done: the last word on it, for the user. A commit of the shard overrides it.

    `images` are the keys of those at which the last attempt ended, where that is known: one, or a batch.
    """

    shard_id: str
    uri: str
    attempts: int
    error: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerInfo:
    """What a run must know of its labeler; see `labelers.Labeler`. batch_size, device: of one worker."""

    fingerprint: str
    categories: tuple[Category, ...]
    batch_size: int | None = None
    device: str = "CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a run is: written once, before its first shard.

    `shards` are in the order of the plan; those of a large run are a `shard_list.ShardList`.
    """

    run_id: str
    schema_version: int
    version: str
    created: str
    config: Mapping[str, object]
    fingerprint: str
    categories: tuple[Category, ...]
    shards: Sequence[Shard]
