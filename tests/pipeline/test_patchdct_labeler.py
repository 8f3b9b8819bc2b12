"""The adapter of the model: which of the user's settings reach it, and what its labels' fingerprint tells apart."""

from __future__ import annotations

import numpy as np
import pytest

from patchdct import scenes
from patchdct.build import build_model
from patchdct.checkpoint import save_checkpoint
from patchdct.config import load_config
from pipeline.config import LabelerConfig, TtaConfig
from pipeline.errors import UserError
from pipeline.patchdct_labeler import PatchDCTLabeler
from tests.patchdct import small

WEIGHTS = str(small.CONFIGS / "patchdct_demo.pth")


def labeler(store, **settings) -> PatchDCTLabeler:
    return PatchDCTLabeler(LabelerConfig(**{"weights": WEIGHTS, "min_size": 160, **settings}), store)


@pytest.fixture(scope="module")
def plain(store) -> PatchDCTLabeler:
    return labeler(store)


@pytest.fixture(scope="module")
def flipped(store) -> PatchDCTLabeler:
    return labeler(store, tta=TtaConfig(flip=True))


def test_augmentation_reaches_the_model(plain, flipped):
    """With labeler.tta the labels are those of several versions, in the same form, of the same things."""
    image = scenes.draw_scene(102, 160).image
    [expected], [found] = plain.label([image]), flipped.label([image])
    assert found.counts != expected.counts
    assert found.scores.dtype == np.float32
    best, same = found.scores.argmax(), expected.scores.argmax()
    assert found.category_ids[best] == expected.category_ids[same]
    np.testing.assert_allclose(found.boxes[best], expected.boxes[same], atol=4)


def test_fingerprint(store, plain, flipped):
    """A run that shows its images in other versions must not go on in one that does not."""
    scaled = labeler(store, tta=TtaConfig(flip=True, scales=(160,)))
    assert len({plain.fingerprint, flipped.fingerprint, scaled.fingerprint}) == 3
    assert labeler(store, tta=None).fingerprint == plain.fingerprint


def test_model_without_masks(store, tmp_path):
    """A detector of boxes is refused when the run starts, and not at the first image."""
    cfg = load_config(small.CONFIGS / "demo_detector.yaml")
    path, state = tmp_path / "detector.pth", build_model(cfg)[0].state_dict()
    save_checkpoint(path, state, categories=scenes.CATEGORIES, config_text=cfg.dump(), provenance=None)
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON is False"):
        labeler(store, weights=str(path))
