"""What the scores and the quality columns of a run mean: fitted to images whose objects are known, applied as a view.

additive    sums of piecewise-linear functions, and how they are fitted
record      a calibration, as a frozen record and as a JSON file; what it adds to instances
matching    which masks of an image are right, by its true objects
figures     how good predictions of quality are: rank correlation, calibration error, bad masks found
fitting     masks and what became of them -> a calibration, and its figures on images that it did not see
"""

from pipeline.calibration.record import PREDICTED_IOU, PROBABILITY, Calibration, read, write

__all__ = ["PREDICTED_IOU", "PROBABILITY", "Calibration", "read", "write"]
