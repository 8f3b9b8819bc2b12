"""The config of `jobs.train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from pipeline.config.types import STRICT, Finite, Gpus, Natural, Positive, Precision, Share, Text, Word, WorkersRange

Tracker: TypeAlias = Literal["tensorboard", "wandb", "mlflow"]
DatasetName: TypeAlias = Literal["coco", "lvis_v0.5", "cityscapes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Images with masks: either `annotations` with `images`, or a labeling `run`.

    name: the form of the annotations. coco: a COCO json, and the folder of its images. lvis_v0.5: an LVIS v0.5 json, of
    which the categories that COCO has are kept (one that was cofied before works, too), and the folder of the images.
    cityscapes: gtFine/train and leftImg8bit/train, or another split. run: a run of `jobs.label`, whose instances of
    `score_threshold` and more are taken for the truth, as are all that people have corrected. thresholds: of a run, a
    file of `patchlabel calibrate`; taxonomy: of a run, a mapping of its classes.
    """

    __pydantic_config__ = STRICT
    name: DatasetName = "coco"
    annotations: Text | None = None
    images: Text | None = None
    run: Text | None = None
    score_threshold: Share = 0.5
    thresholds: Text | None = None
    taxonomy: Text | None = None

    def __post_init__(self) -> None:
        if self.run is None and (self.thresholds is not None or self.taxonomy is not None):
            raise ValueError("thresholds and taxonomy in a group with run")
        given = (self.annotations is not None, self.images is not None, self.run is not None)
        if given not in ((True, True, False), (False, False, True)):
            raise ValueError("a group with annotations and images, or with run")


#: One data set, or several with the same categories.
Datasets: TypeAlias = DatasetConfig | Annotated[tuple[DatasetConfig, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What to train on, and what to measure checkpoints on (null: nothing).

    loaders: processes that read and augment images, for each worker; 0 does that between steps. cache: a folder on each
    node for images that lie in archives; null is one in the system's temporary folder.
    """

    __pydantic_config__ = STRICT
    train: Datasets
    val: Datasets | None = None
    loaders: Natural = 0
    cache: Text | None = None

    @property
    def train_sets(self) -> tuple[DatasetConfig, ...]:
        """`train` as a tuple."""
        return (self.train,) if isinstance(self.train, DatasetConfig) else self.train

    @property
    def val_sets(self) -> tuple[DatasetConfig, ...]:
        """`val` as a tuple, empty where there is none."""
        return (self.val,) if isinstance(self.val, DatasetConfig) else self.val or ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model: a detectron2 YAML, weights to start from (null: from scratch), yacs overrides."""

    __pydantic_config__ = STRICT
    config: Text
    weights: Text | None = None
    overrides: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How the model is fitted; what is null comes from SOLVER of the model config, see `patchdct.schedule.resolve`.

    batch_size: images a step, over all workers. lr: null also scales the model config's rate, and its steps, with the
    batch (the linear rule). micro_batch: at most so many images in one forward pass of a worker; a larger share is
    accumulated (null: no limit). decay: step (by tenths, at SOLVER.STEPS) or cosine. clip: the greatest norm of the
    gradient (0: none). ema: the decay of the averaged weights (0: none), which are the ones that are stored and
    measured.
    """

    __pydantic_config__ = STRICT
    steps: Positive | None = None
    batch_size: Positive | None = None
    micro_batch: Positive | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    lr: Annotated[Finite, Field(gt=0)] | None = None
    warmup: Natural | None = None
    decay: Literal["step", "cosine"] | None = None
    weight_decay: Annotated[Finite, Field(ge=0)] | None = None
    clip: Annotated[Finite, Field(ge=0)] | None = None
    precision: Precision | None = None
    ema: Annotated[Finite, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRunConfig:
    """Where the training lives, and how it is spread over a cluster.

    Checkpoints, curves and the final model.pth go below `storage`/`name`; what is there is gone on with. address: of
    Ray; null starts a local one. workers: 0 trains in this process, without Ray; {min, max} goes on with fewer or more
    as nodes leave and join. gpus_per_worker: null is 1 where there are any. threads: of each worker on a CPU.
    checkpoint_every, evaluate_every (null: with each checkpoint), log_every: in steps. keep: so many checkpoints, and
    the best by mask AP on `data.val`. max_failures: so many deaths of workers are made good, and one more ends the
    run; a preempted node counts for nothing. half: store model.pth as float16, at half the size. accept_changes: go on
    with a training that was begun with another model, schedule or data.
    """

    __pydantic_config__ = STRICT
    name: Text
    storage: Text
    address: Text | None = None
    workers: Natural | WorkersRange = 0
    gpus_per_worker: Gpus | None = None
    cpus_per_worker: Annotated[Finite, Field(gt=0)] | None = None
    threads: Positive | None = None
    checkpoint_every: Positive = 500
    evaluate_every: Positive | None = None
    log_every: Positive = 20
    keep: Positive = 2
    max_failures: Natural = 3
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    half: bool = False
    seed: Natural = 0
    accept_changes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The config of `jobs.train`."""

    __pydantic_config__ = STRICT
    data: DataConfig
    model: ModelConfig
    run: TrainRunConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
