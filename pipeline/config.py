"""YAML and `--set key=value` -> frozen dataclasses, with one sentence for whatever does not fit.

The dataclasses are the documentation of the keys: a dotted name such as `labeler.batch_size` is a path through them.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import UserError

Positive: TypeAlias = Annotated[int, Field(gt=0)]
Natural: TypeAlias = Annotated[int, Field(ge=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
InputFormat: TypeAlias = Literal["auto", "tar", "parquet", "images", "coco"]
OutputFormat: TypeAlias = Literal["parquet", "coco"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """What to label.

    uri: one URI or several: objects, prefixes or globs. images: for COCO, where the files are (default: beside the
    json). image_column, key_column: for Parquet, where the names are not the usual ones.
    """

    __pydantic_config__ = _STRICT
    uri: Text | tuple[Text, ...]
    format: InputFormat = "auto"
    images_per_shard: Positive = 1000
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

    __pydantic_config__ = _STRICT
    uri: Text
    formats: Annotated[tuple[OutputFormat, ...], Field(min_length=1)] = ("parquet", "coco")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerConfig:
    """The model and how it is applied.

    name: `patchdct`, or `module:Class` of a `labelers.Labeler`. config: a detectron2 YAML; null takes the one stored in
    the checkpoint. min_size, max_size: shorter and longer side of the resized image in pixels; null keeps the model
    config's. categories: a list of names (ids 1, 2, ...) or a JSON or text file of them; null takes the checkpoint's.
    """

    __pydantic_config__ = _STRICT
    name: Text = "patchdct"
    config: Text | None = None
    weights: Text | None = None
    overrides: tuple[str, ...] = ()
    score_threshold: Share = 0.05
    max_instances: Positive = 100
    batch_size: Positive = 8
    precision: Precision = "fp32"
    min_size: Positive | None = None
    max_size: Positive | None = None
    categories: Text | tuple[Text, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersRange:
    """At least and at most how many workers."""

    __pydantic_config__ = _STRICT
    min: Positive
    max: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How the run is spread over a cluster; nothing here changes a label.

    address: of Ray; null starts a local one. workers: null is one a GPU, or one on a cluster without any.
    gpus_per_worker, cpus_per_worker: null is 1 GPU where there are any, and 1 CPU. max_attempts: how many dead workers
    set a shard aside. accept_changes: go on with a run whose manifest says another config or labeler.
    """

    __pydantic_config__ = _STRICT
    address: Text | None = None
    workers: Positive | WorkersRange | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = None
    max_attempts: Positive = 3
    shard_timeout_s: Positive = 3600
    accept_changes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """What a single image may cost; anything larger is quarantined."""

    __pydantic_config__ = _STRICT
    max_image_bytes: Positive = 100_000_000
    max_image_pixels: Positive = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """The config of `jobs.label`."""

    __pydantic_config__ = _STRICT
    input: InputConfig
    output: OutputConfig
    labeler: LabelerConfig = field(default_factory=LabelerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def labels_depend_on(self) -> dict[str, Any]:
        """The part of the config that can change a row of the output; a resumed run must agree in it."""
        whole: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {key: whole[key] for key in ("input", "output", "labeler", "limits")}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """A COCO json and the folder of its images."""

    __pydantic_config__ = _STRICT
    annotations: Text
    images: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What to train on."""

    __pydantic_config__ = _STRICT
    train: DatasetConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model: a detectron2 YAML, weights to start from (null: from scratch), yacs overrides."""

    __pydantic_config__ = _STRICT
    config: Text
    weights: Text | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Steps, batch and optimizer; see `patchdct.train.Schedule`."""

    __pydantic_config__ = _STRICT
    steps: Positive
    batch_size: Positive
    lr: Annotated[float, Field(gt=0)]
    warmup: Natural = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: Share = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRunConfig:
    """Where the checkpoint goes (`storage`/`name`/model.pth) and how often. Training is on one machine: workers is 0.

    half: store the weights as float16, at half the size.
    """

    __pydantic_config__ = _STRICT
    name: Text
    storage: Text
    workers: Literal[0] = 0
    threads: Positive | None = None
    checkpoint_every: Positive = 500
    half: bool = False
    seed: Natural = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The config of `jobs.train`."""

    __pydantic_config__ = _STRICT
    data: DataConfig
    model: ModelConfig
    schedule: ScheduleConfig
    run: TrainRunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthConfig:
    """The ground truth: a COCO json."""

    __pydantic_config__ = _STRICT
    annotations: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """The config of `jobs.evaluate`.

    predictions: a labeling run or a COCO results json. output: where report.json goes; null writes none.
    """

    __pydantic_config__ = _STRICT
    predictions: Text
    truth: TruthConfig
    metrics: Annotated[tuple[Literal["coco", "boundary"], ...], Field(min_length=1)] = ("coco", "boundary")
    max_detections: Positive = 100
    output: Text | None = None


Config = TypeVar("Config", LabelConfig, TrainConfig, EvaluateConfig)


def load(kind: type[Config], path: str, settings: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` settings in order, and check everything.

    Raises:
        UserError: an unreadable file, an unknown key, a wrong type or value; the sentence names the file and the key.
    """
    try:
        raw = yaml.safe_load(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no mapping of keys; see configs/ for examples")
    for setting in settings:
        _apply(raw, setting)
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(kind, error)}") from None


def fingerprint(value: object) -> str:
    """16 hex digits of the sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _apply(raw: dict[str, Any], setting: str) -> None:
    """Put `a.b=value`, the value as YAML, into a nested mapping."""
    key, sign, text = setting.partition("=")
    if not sign or not key:
        raise UserError(f"--set {setting}: write it as key=value, for example --set run.workers=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {setting}: the value is no valid YAML ({' '.join(str(error).split())})") from error
    *parents, last = key.split(".")
    node = raw
    for name in parents:
        child = node.setdefault(name, {})
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {setting}: {name} is a value, not a group of keys")
        node = child
    node[last] = value


def _sentence(kind: type[Any], error: ValidationError) -> str:
    """The first fault of a validation, in words."""
    fault = error.errors(include_url=False)[0]
    path = [
        str(p) for p in fault["loc"] if str(p).islower() and not str(p).startswith(("constrained", "function", "tuple"))
    ]
    known = _keys(kind)
    key = ".".join(path)
    while path and key not in known and fault["type"] != "unexpected_keyword_argument":
        path.pop()
        key = ".".join(path)
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(key, known, n=1)
        return f"{key} is no known key" + (f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}")
    if fault["type"] in ("missing", "missing_argument"):
        return f"{key or '.'.join(str(p) for p in fault['loc'])} is missing"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key} is {fault['input']!r}: {message}"


def _keys(kind: type[Any], prefix: str = "") -> list[str]:
    """The dotted names of all keys of a config class, groups included."""
    keys = []
    hints: Mapping[str, Any] = {f.name: f.type for f in dataclasses.fields(kind)}
    for name, hint in hints.items():
        keys.append(prefix + name)
        group = globals().get(hint) if isinstance(hint, str) else hint
        if isinstance(group, type) and dataclasses.is_dataclass(group):
            keys += _keys(group, f"{prefix}{name}.")
    return keys
