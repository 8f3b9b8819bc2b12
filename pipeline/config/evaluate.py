"""The config of `jobs.evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from pipeline.config.label import LabelerConfig, RunConfig
from pipeline.config.train import DatasetName
from pipeline.config.types import STRICT, Natural, Positive, Text, Word

Metric: TypeAlias = Literal["coco", "boundary", "lvis", "cityscapes", "pr", "upper_bound"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthConfig:
    """The ground truth; `name` as for training data. images: needed to label with a checkpoint and to show images."""

    __pydantic_config__ = STRICT
    name: DatasetName = "coco"
    annotations: Text
    images: Text | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedModelConfig:
    """The model config of a checkpoint; null is the one stored in it."""

    __pydantic_config__ = STRICT
    config: Text | None = None
    overrides: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """The config of `jobs.evaluate`.

    predictions: a labeling run, a COCO results json, or a checkpoint, which then labels the images of the truth on Ray
    as `labeler` and `run` say, into `output`/run; null where only the upper bound is asked for. max_detections: of an
    image and category, best scored first. engine: what computes COCO's figures; fast gives the same ones. output: where
    report.json, report.md and report.html go; null writes none. worst: how many images the report shows.
    """

    __pydantic_config__ = STRICT
    predictions: Text | None = None
    model: EvaluatedModelConfig = field(default_factory=EvaluatedModelConfig)
    truth: TruthConfig
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("coco", "boundary")
    max_detections: Positive = 100
    engine: Literal["fast", "pycocotools"] = "fast"
    labeler: LabelerConfig = field(default_factory=LabelerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    output: Text | None = None
    worst: Natural = 12
