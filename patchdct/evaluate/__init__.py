"""How good predicted masks are."""

from patchdct.evaluate.boundary import boundary, boundary_width
from patchdct.evaluate.coco import METRICS, Evaluation, evaluate
from patchdct.evaluate.images import ImageQuality, image_quality, judge, worst
from patchdct.evaluate.rows import BLOCK, Rows, Truth, blocks

__all__ = [
    "BLOCK",
    "METRICS",
    "Evaluation",
    "ImageQuality",
    "Rows",
    "Truth",
    "blocks",
    "boundary",
    "boundary_width",
    "evaluate",
    "image_quality",
    "judge",
    "worst",
]
