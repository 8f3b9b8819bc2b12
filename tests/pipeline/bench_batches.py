"""How full batches are for images of the sizes in a COCO json, with the memory that a worker has by default.

python -m tests.pipeline.bench_batches instances_val2017.json
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from detectron2.data.transforms import ResizeShortestEdge

from pipeline.batches import alike
from pipeline.config import RunConfig
from pipeline.labelling import BATCHES_WAITED, SHARE_WAITING

IMAGES, SHORTER, LONGER, MULTIPLE = 5000, 800, 1333, 32


def main(path: str) -> None:
    """Print images a forward pass, for images drawn from those of the file."""
    sizes = [(one["height"], one["width"]) for one in json.loads(Path(path).read_bytes())["images"]]
    drawn = random.Random(0).choices(sizes, k=IMAGES)
    shapes = [ResizeShortestEdge.get_output_shape(*size, SHORTER, LONGER) for size in drawn]
    for size in (4, 8, 16, 32):
        for waited in (1, BATCHES_WAITED):
            batches = alike(
                shapes,
                lambda shape: tuple(-(-side // MULTIPLE) for side in shape),
                lambda shape: 3 * shape[0] * shape[1],
                size=size,
                window=waited * size,
                window_bytes=int(SHARE_WAITING * RunConfig().prefetch_bytes),
            )
            full = IMAGES / sum(1 for _ in batches)
            print(f"batches of {size}, waiting for {waited}: {full:.1f} images a forward pass")


if __name__ == "__main__":
    main(*sys.argv[1:])
