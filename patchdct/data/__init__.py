"""Training data: COCO annotations -> model inputs, with detectron2's augmentation, in an order that can be taken up.

A sample is a function of (seed, epoch, index), and which samples make a step is one of (seed, step). Neither depends on
the number of workers, or of processes that load for them.
"""

from patchdct.data.order import MicroBatches, loader, shares
from patchdct.data.samples import DatasetMapper_with_GT, TrainingSet, read_file
from patchdct.data.truth import Truth, read_coco, truth_of

__all__ = [
    "DatasetMapper_with_GT",
    "MicroBatches",
    "TrainingSet",
    "Truth",
    "loader",
    "read_coco",
    "read_file",
    "shares",
    "truth_of",
]
