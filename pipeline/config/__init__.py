"""What users set: YAML and `--set key=value` -> frozen dataclasses, which document the keys."""

from pipeline.config.evaluate import EvaluateConfig, Metric, TruthConfig
from pipeline.config.label import (
    InputConfig,
    InputFormat,
    LabelConfig,
    LabelerConfig,
    LimitsConfig,
    OutputConfig,
    OutputFormat,
    RelabelConfig,
    RunConfig,
    TtaConfig,
)
from pipeline.config.loading import fingerprint, load, load_mapping
from pipeline.config.train import (
    DataConfig,
    DatasetConfig,
    DatasetName,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
    TrainRunConfig,
)
from pipeline.config.types import WorkersRange

__all__ = [
    "DataConfig",
    "DatasetConfig",
    "DatasetName",
    "EvaluateConfig",
    "InputConfig",
    "InputFormat",
    "LabelConfig",
    "LabelerConfig",
    "LimitsConfig",
    "Metric",
    "ModelConfig",
    "OutputConfig",
    "OutputFormat",
    "RelabelConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainConfig",
    "TrainRunConfig",
    "TruthConfig",
    "TtaConfig",
    "WorkersRange",
    "fingerprint",
    "load",
    "load_mapping",
]
