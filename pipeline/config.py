"""YAML and `--set key=value` -> frozen dataclasses, with one sentence for whatever does not fit.

The dataclasses are the documentation of the keys: a dotted name such as `labeler.batch_size` is a path through them.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import UserError
from pipeline.records import ROW_BITS

Positive: TypeAlias = Annotated[int, Field(gt=0)]
Natural: TypeAlias = Annotated[int, Field(ge=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(min_length=1)]
#: A word of a list of yacs KEY VALUE pairs, whose numbers YAML reads as such.
Word: TypeAlias = Annotated[str, BeforeValidator(str)]
InputFormat: TypeAlias = Literal["auto", "tar", "parquet", "images", "coco"]
OutputFormat: TypeAlias = Literal["parquet", "coco"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

_STRICT = ConfigDict(extra="forbid")

#: What PyYAML raises for a text that it cannot read, or a value such as the date 2001-99-99.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)
_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")
#: What is accepted, by pydantic's name for a fault, or the first word of that.
_ACCEPTED = {
    "bool": "true or false",
    "finite": "a finite number",
    "float": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int": "a whole number",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "string": "a text",
    "string_too_short": "a text that is not empty",
    "too_short": "a list that is not empty",
    "tuple": "a list",
    "value_error": "{error}",
}
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring = 2, 80


def _part_or_whole(number: float) -> float:
    """What Ray gives of a GPU."""
    if number > 1 and number % 1:
        raise ValueError("a part of 1, or a whole number")
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """What to label.

    uri: one URI or several: objects, prefixes or globs. images: for COCO, where the files are (default: beside the
    json). image_column, key_column: for Parquet, where the names are not the usual ones.
    """

    __pydantic_config__ = _STRICT
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
    overrides: tuple[Word, ...] = ()
    score_threshold: Share = 0.05
    max_instances: Positive = 100
    batch_size: Positive = 8
    precision: Precision = "fp32"
    min_size: Positive | None = None
    max_size: Positive | None = None
    categories: Text | Texts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersRange:
    """At most `max` workers; a run with fewer than `min` for a minute says so."""

    __pydantic_config__ = _STRICT
    min: Positive
    max: Positive

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError("a range whose min is not above its max")


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
    gpus_per_worker: Annotated[Finite, Field(ge=0), AfterValidator(_part_or_whole)] | None = None
    cpus_per_worker: Annotated[Finite, Field(gt=0)] | None = None
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
        """The part of the config that can change a row of the output; a resumed run must agree in it.

        The batch size moves the last bits of a score at most, and is what a user lowers when memory runs out.
        """
        whole: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        del whole["labeler"]["batch_size"]
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
    overrides: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Steps, batch and optimizer; see `patchdct.train.Schedule`."""

    __pydantic_config__ = _STRICT
    steps: Positive
    batch_size: Positive
    lr: Annotated[Finite, Field(gt=0)]
    warmup: Natural = 100
    weight_decay: Annotated[Finite, Field(ge=0)] = 0.05
    clip: Annotated[Finite, Field(gt=0)] = 1.0
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
    except _NO_YAML as error:
        raise UserError(f"{path} is no valid YAML: {_reason(error)}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no mapping of keys; see configs/ for examples")
    for setting in settings:
        _apply(raw, setting)
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        key, sentence = _fault(kind, error)
        raise UserError(f"{'--set' if _is_set(key, settings) else path}: {sentence}") from None


def fingerprint(value: object) -> str:
    """16 hex digits of the sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _apply(raw: dict[str, Any], setting: str) -> None:
    """Put `a.b=value`, the value as YAML, into a nested mapping."""
    key, sign, text = setting.partition("=")
    if not sign or not all(key.split(".")):
        raise UserError(f"--set {setting}: write it as key=value, for example --set run.workers=2")
    try:
        value = yaml.safe_load(text)
    except _NO_YAML as error:
        raise UserError(f"--set {setting}: the value is no valid YAML: {_reason(error)}") from error
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


def _is_set(key: str, settings: Sequence[str]) -> bool:
    """Whether a key, or one above or below it, is among `key=value` settings."""
    place = key.replace("[", ".") + "."
    set_places = (f"{setting.partition('=')[0]}." for setting in settings)
    return any(place.startswith(one) or one.startswith(place) for one in set_places)


def _reason(error: Exception) -> str:
    """What is wrong with a YAML, without the excerpts that PyYAML adds."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        return "it is no text in UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return str(error)


def _fault(kind: type[Any], error: ValidationError) -> tuple[str, str]:
    """The key and the sentence of the fault that says most: an unknown key, else the one deepest in the config."""
    known = _keys(kind)
    faults = [(_key(fault, known), fault) for fault in error.errors(include_url=False)]
    key, first = max(faults, key=lambda one: (one[1]["type"] in _UNKNOWN, len(one[1]["loc"])))
    if first["type"] in _UNKNOWN:
        group = [one for one in known if one.rpartition(".")[0] == key.rpartition(".")[0]]
        names = {one.rpartition(".")[2]: one for one in (*known, *group)}
        near = difflib.get_close_matches(key.rpartition(".")[2], names, n=1)
        hint = f"did you mean {names[near[0]]}?" if near else f"known are {', '.join(group)}"
        return key, f"{key} is no known key; {hint}"
    if first["type"] == "missing":
        return key, f"{key} is missing"
    accepted = dict.fromkeys(_accepted(key, fault, known) for its_key, fault in faults if its_key == key)
    return key, f"{key} is {_shown(first['input'])}; it must be {', or '.join(accepted)}"


def _key(fault: ErrorDetails, known: Sequence[str]) -> str:
    """The dotted key of a fault, whose place also names alternatives of a type, such as "constrained-int"."""
    key = ""
    for number, part in enumerate(fault["loc"], start=1):
        longer = f"{key}.{part}" if key else str(part)
        if longer in known or (number == len(fault["loc"]) and fault["type"] in _UNKNOWN):
            key = longer
        elif isinstance(part, int):
            key += f"[{part}]"
    return key


def _accepted(key: str, fault: ErrorDetails, known: Sequence[str]) -> str:
    """What is accepted where this fault was found."""
    if fault["type"] == "dataclass_type":
        members = [one.removeprefix(f"{key}.") for one in known if one.startswith(f"{key}.")]
        return f"a group of keys ({', '.join(members)})"
    words = _ACCEPTED.get(fault["type"]) or _ACCEPTED.get(fault["type"].partition("_")[0]) or fault["msg"]
    unquoted = fault["type"] == "string_type" and not isinstance(fault["input"], list | dict | None)
    return words.format(**fault.get("ctx", {})) + (" in quotes" if unquoted else "")


def _shown(value: object) -> str:
    """A value about as YAML has it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _BRIEF.repr(value) if isinstance(value, str | list | dict) else str(value)


def _keys(kind: type[Any], prefix: str = "") -> list[str]:
    """The dotted names of all keys of a config class, groups included."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        keys.append(prefix + name)
        for option in (hint, *get_args(hint)):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                keys += _keys(option, f"{prefix}{name}.")
    return keys
