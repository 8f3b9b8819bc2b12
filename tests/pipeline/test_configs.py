"""The configs that are shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import EvaluateConfig, LabelConfig, TrainConfig, load

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
KINDS = {"label": LabelConfig, "train": TrainConfig, "evaluate": EvaluateConfig}


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("[let]*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_config_is_read(path: Path) -> None:
    """A config that its own command refuses is the first thing that a new user meets."""
    kind = KINDS[path.parent.name]
    load(kind, str(path))  # type: ignore[type-var]
