"""A small model for the tests of what is around it."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN

from tests.patchdct import small


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    """A module with a fixture of this name gets the model of its own config."""
    return small.config()


@pytest.fixture(scope="module")
def model(cfg: CfgNode) -> GeneralizedRCNN:
    torch.manual_seed(3)
    return small.model(cfg)
