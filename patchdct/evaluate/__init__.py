"""How good predicted masks are."""

from patchdct.evaluate.boundary import boundary, boundary_width
from patchdct.evaluate.coco import METRICS, Evaluation, evaluate
from patchdct.evaluate.images import ImageQuality, image_quality, judge, worst
from patchdct.evaluate.keys import Keys, match_keys
from patchdct.evaluate.rows import BLOCK, Rows, Truth, blocks

__all__ = [
    "BLOCK",
    "METRICS",
    "Evaluation",
    "ImageQuality",
    "Keys",
    "Rows",
    "Truth",
    "blocks",
    "boundary",
    "boundary_width",
    "evaluate",
    "image_quality",
    "judge",
    "match_keys",
    "worst",
]
