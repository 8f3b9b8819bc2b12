"""How good predicted masks are."""

from patchdct.evaluate.boundary import boundary, boundary_width
from patchdct.evaluate.coco import METRICS, evaluate
from patchdct.evaluate.images import ImageQuality, image_quality, worst
from patchdct.evaluate.keys import match_keys

__all__ = [
    "METRICS",
    "ImageQuality",
    "boundary",
    "boundary_width",
    "evaluate",
    "image_quality",
    "match_keys",
    "worst",
]
