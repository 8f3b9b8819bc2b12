"""The config of `jobs.label`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from pipeline.config.types import STRICT, Finite, Gpus, Positive, Precision, Share, Text, Texts, Word, WorkersRange
from pipeline.records import ROW_BITS

InputFormat: TypeAlias = Literal["auto", "tar", "parquet", "images", "coco"]
OutputFormat: TypeAlias = Literal["parquet", "coco"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """What to label.

    uri: one URI or several: objects, prefixes or globs. images: for COCO, where the files are (default: beside the
    json). image_column, key_column: for Parquet, where the names are not the usual ones.
    """

    __pydantic_config__ = STRICT
    uri: Text | Texts
    format: InputFormat = "auto"
    images_per_shard: Annotated[int, Field(gt=0, le=1 << ROW_BITS)] = 1000
    images: Text | None = None
    image_column: Text | None = None
    key_column: Text | None = None

    @property
    def uris(self) -> tuple[str, ...]:
        """`uri` as a tuple."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where the run lives, and the formats of its shards."""

    __pydantic_config__ = STRICT
    uri: Text
    formats: Annotated[tuple[OutputFormat, ...], Field(min_length=1)] = ("parquet", "coco")


@dataclass(frozen=True, slots=True, kw_only=True)
class TtaConfig:
    """Test-time augmentation: what each image is labelled as, besides as it is.

    flip: mirrored, too. scales: shorter sides in pixels, in the place of the one that the model config has.
    """

    __pydantic_config__ = STRICT
    flip: bool = True
    scales: tuple[Positive, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerConfig:
    """The model and how it is applied.

    name: `patchdct`, or `module:Class` of a `labelers.Labeler`. config: a detectron2 YAML; null takes the one stored in
    the checkpoint. batch_size: images that go through the model together, where they are alike; auto finds out what is
    fastest on the machine. min_size, max_size: shorter and longer side of the resized image in pixels; null keeps the
    model config's. categories: a list of names (ids 1, 2, ...) or a JSON or text file of them; null takes the
    checkpoint's.
    tta: label each image several times and average; null labels it once. scaled_decoding: decode a JPEG that is more
    than twice as large as the model sees it at a half, a quarter or an eighth of its size, which is faster and moves
    labels a little. resize: where images are resized; gpu spares the CPU that work and takes a copy of each whole image
    to the GPU, for the same labels; without a GPU it is as cpu. quality: a file of `patchlabel calibrate`, whose model
    makes the column predicted_iou; null makes it expected_iou, as it is. flip_agreement: predict masks once more, on
    the mirrored image, and say how far both agree, which takes about twice as long.
    """

    __pydantic_config__ = STRICT
    name: Text = "patchdct"
    config: Text | None = None
    weights: Text | None = None
    overrides: tuple[Word, ...] = ()
    score_threshold: Share = 0.05
    max_instances: Positive = 100
    batch_size: Positive | Literal["auto"] = 8
    precision: Precision = "fp32"
    min_size: Positive | None = None
    max_size: Positive | None = None
    categories: Text | Texts | None = None
    tta: TtaConfig | None = None
    scaled_decoding: bool = False
    resize: Literal["cpu", "gpu"] = "cpu"
    quality: Text | None = None
    flip_agreement: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelConfig:
    """What of `run.base` is labelled anew.

    shards: ids or URIs of shards, with * for any characters; empty: all where classes are given, else none. classes:
    names; the other instances of an image stay; empty: all. containing: look only at images that had one of the
    classes, instead of at all of them.
    """

    __pydantic_config__ = STRICT
    shards: tuple[Text, ...] = ()
    classes: tuple[Text, ...] = ()
    containing: bool = False

    def __post_init__(self) -> None:
        if self.containing and not self.classes:
            raise ValueError("a group that names classes where containing is true")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How the run is spread over a cluster; nothing here changes a label, but for `base` and `relabel`.

    address: of Ray; null starts a local one. workers: null is one a GPU, or one on a cluster without any.
    gpus_per_worker, cpus_per_worker: null is 1 GPU where there are any, and 1 CPU. max_attempts: how many dead workers
    set a shard aside. storage_patience_s: how long storage may not answer, and nothing be committed, before the run
    stops. accept_changes: go on with a run whose manifest says another config or labeler. only: take just the shards
    that were set aside. prefetch_bytes: what a worker holds of images, encoded and decoded, ahead of its
    labeler; the more, the fuller are batches of images of various shapes. base: another run over the same input, from
    which all is taken that `relabel` does not ask for. price: of a GPU hour, in any currency, for the report.
    """

    __pydantic_config__ = STRICT
    address: Text | None = None
    workers: Positive | WorkersRange | None = None
    gpus_per_worker: Gpus | None = None
    cpus_per_worker: Annotated[Finite, Field(gt=0)] | None = None
    max_attempts: Positive = 3
    shard_timeout_s: Positive = 3600
    storage_patience_s: Positive = 300
    accept_changes: bool = False
    only: Literal["quarantined"] | None = None
    prefetch_bytes: Positive = 512_000_000
    price: Annotated[Finite, Field(ge=0)] | None = None
    base: Text | None = None
    relabel: RelabelConfig = field(default_factory=RelabelConfig)

    def __post_init__(self) -> None:
        if self.base is None and self.relabel != RelabelConfig():
            raise ValueError("a group that names a base where it has relabel")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """What a single image may cost; anything larger is quarantined.

    isolate_decoding: decode in processes of their own, so that a decoder that crashes, hangs or takes too much memory
    costs its image, not the shard.
    """

    __pydantic_config__ = STRICT
    max_image_bytes: Positive = 100_000_000
    max_image_pixels: Positive = 100_000_000
    isolate_decoding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """The config of `jobs.label`."""

    __pydantic_config__ = STRICT
    input: InputConfig
    output: OutputConfig
    labeler: LabelerConfig = field(default_factory=LabelerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def labels_depend_on(self) -> dict[str, Any]:
        """The part of the config that can change a row of the output; a resumed run must agree in it.

        The batch size moves the last bits of a score at most, and is what a user lowers when memory runs out; where
        images are resized moves nothing. Test-time augmentation, scaled decoding, columns to order and the base of a
        run are named where they are used, so that runs from before they were known go on.
        """
        whole: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        del whole["labeler"]["batch_size"], whole["labeler"]["resize"]
        del whole["limits"]["isolate_decoding"]
        for name in ("tta", "scaled_decoding", "quality", "flip_agreement"):
            if not whole["labeler"][name]:
                del whole["labeler"][name]
        found = {key: whole[key] for key in ("input", "output", "labeler", "limits")}
        if self.run.base is not None:
            found["run"] = {key: whole["run"][key] for key in ("base", "relabel")}
        return found
