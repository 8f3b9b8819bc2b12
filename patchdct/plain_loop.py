"""The way that detectron2's own tools label, image by image: what the faster way is compared with.

An image is resized as by `DefaultPredictor`, the model gives masks at image size (`paste_masks_in_image`), and what
detectron2's COCO evaluation uses makes RLE of them, by pycocotools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from patchdct.build import build_model
from patchdct.checkpoint import Checkpoint
from patchdct.config import load_config
from patchdct.predict import PRECISIONS


class PlainLoop:
    """A model that labels one image at a time, on the GPU that the process sees, else on the CPU."""

    def __init__(
        self, weights: Checkpoint, *, config: str | None, overrides: Sequence[str], precision: str = "fp32"
    ) -> None:
        """Build the model.

        Args:
            weights: of the model, and its config unless there is another one.
            config: a detectron2 YAML; None: that of the weights.
            overrides: yacs KEY VALUE pairs.
            precision: one of `predict.PRECISIONS`.

        Raises:
            ModelError: any of these cannot be used.
        """
        cfg = load_config(config, overrides) if config else load_config(text=weights.config, overrides=overrides)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model, _ = build_model(cfg, device=self._device, weights=weights)
        self._dtype = PRECISIONS[precision]
        self._bgr = cfg.INPUT.FORMAT == "BGR"
        self._resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    @torch.inference_mode()
    def __call__(self, image: npt.NDArray[np.uint8], image_id: int) -> list[dict[str, Any]]:
        """COCO results of an RGB image, uint8 [H, W, 3]; the category is the model's class, from 0."""
        height, width = image.shape[:2]
        if self._bgr:
            image = image[:, :, ::-1]
        resized = self._resize.get_transform(image).apply_image(image)
        pixels = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
            (found,) = self._model([{"image": pixels, "height": height, "width": width}])
        rows: list[dict[str, Any]] = instances_to_coco_json(found["instances"].to("cpu"), image_id)
        return rows
