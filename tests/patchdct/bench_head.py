"""Time the mask head's inference against the paper's plain form, with the widths of the published models.

    python -m tests.patchdct.bench_head [--rois 100] [--classes 80] [--rounds 3] [--blocks 1]

All compute the masks of the same random features in turn (A B C A B C ...) on one torch thread, after a run of each:

    A  plain_form.masks: all classes predicted, full decoding by FFT and then resizing, every patch decoded
    B  MaskRCNNPatchDCTHead as it was built
    C  the same head after fast.optimised

The output has the median times of the thread on its CPU, and the medians of the ratios B / A and C / A of neighbouring
times; the same of only those steps in which A and B differ, without the convolutions; the number of patches that change
class between A and C, the largest difference between masks in the patches that do not, and the number of masks whose
RLE changes, pasted into an image. Times depend on the machine and its load, the ratios less. The features are random:
their masks have far more edges than those of objects, and each is a chance for rounding to show. The exit status is 1
where more patches change class than rounding explains (one in a thousand) or a difference is above 1e-4.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor

from patchdct import dct, fast, patches
from patchdct.config import load_config
from patchdct.mask_head import MaskRCNNPatchDCTHead
from patchdct.paste import paste_rle
from tests.patchdct import plain_form, small

TOLERANCE, ROUNDED = 1e-4, 1e-3
HEIGHT, WIDTH = 800, 1216


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Median seconds of two ways, and the median of the ratios ours / plain of neighbouring times."""

    plain: float
    ours: float
    ratio: float

    def __str__(self) -> str:
        return f"plain form {self.plain:.3g} s, ours {self.ours:.3g} s, ours / plain {self.ratio:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Times of the head as built and optimised and of the steps that differ; then what differs from the plain form.

    changed: of `patches` patches, those of another class. difference: the largest in the others. rles: of `masks`
    masks, those whose RLE changes.
    """

    built: Times
    optimised: Times
    steps: Times
    changed: int
    patches: int
    difference: float
    rles: int
    masks: int


def build(classes: int, blocks: int) -> MaskRCNNPatchDCTHead:
    """The head of the published R50 config with random weights, whose patches fall into all classes."""
    weights = [1.0] * (blocks + 1)
    overrides = ("MODEL.ROI_MASK_HEAD.NUM_STAGE", blocks + 1, "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE", weights)
    cfg = load_config(small.CONFIGS / "patchdct_r50_1x.yaml", [*overrides, "MODEL.ROI_HEADS.NUM_CLASSES", classes])
    head = MaskRCNNPatchDCTHead(cfg, ShapeSpec(channels=256, width=14, height=14)).eval()
    with torch.no_grad():
        head.predictor_bfg.weight *= 100
        head.predictor1.weight *= 100
    return head


@torch.inference_mode()
def measure(*, rois: int, classes: int, rounds: int, blocks: int) -> Result:
    """Time both ways, one after the other, and compare what they give."""
    torch.manual_seed(0)
    head = build(classes, blocks)
    x, fine = torch.randn(rois, 256, 14, 14), torch.randn(rois, 256, 42, 42)
    found = Instances((HEIGHT, WIDTH))
    found.pred_classes = torch.randint(classes, (rois,))

    fast_head = fast.optimised(head)
    whole_mask = fast_head.whole_mask(x)
    expected, decided = plain_form.masks(head, x, fine, found.pred_classes)
    logits, vectors = fast_head.refine(whole_mask, fine, found.pred_classes)[-1]
    classes_found = patches.classify(logits, head.patch_threshold)
    changed = classes_found != decided
    differences = (patches.decode(classes_found, vectors, 8) - patches.split(expected, 8)).abs().amax((1, 2))
    rles, ours = _rles(expected), _rles(fast_head(x, fine, [found])[0].pred_masks[:, 0])
    features = torch.randn(rois, 1024, 14, 14)

    def plain_steps() -> None:
        F.interpolate(plain_form.decode(whole_mask, 112)[:, None], 42)
        plain_form.predict(head, features, found.pred_classes)
        plain_form.assemble(decided, vectors)

    def our_steps() -> None:
        dct.decode_resized(whole_mask, 112, 42)
        head._predict(head.predictor_bfg, 3, features, found.pred_classes)
        head._predict(head.predictor1, 6, features, found.pred_classes)
        head._assemble(decided, vectors)

    def of(work: MaskRCNNPatchDCTHead) -> Callable[[], object]:
        return lambda: work(x, fine, [found])

    built, optimised = _time(
        rounds, lambda: plain_form.masks(head, x, fine, found.pred_classes), of(head), of(fast_head)
    )
    [steps] = _time(5 * rounds, plain_steps, our_steps)
    return Result(
        built=built,
        optimised=optimised,
        steps=steps,
        changed=int(changed.sum()),
        patches=len(changed),
        difference=float(differences[~changed].max()),
        rles=sum(a != b for a, b in zip(rles, ours, strict=True)),
        masks=rois,
    )


def _rles(masks: Tensor) -> list[str]:
    """Of masks [N, 112, 112] in boxes of many sizes."""
    corners = torch.rand(len(masks), 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([WIDTH, HEIGHT]) / 2
    boxes = torch.cat([corners, corners + 20 + corners.flip(1)], 1)
    return paste_rle(masks.numpy(), boxes.numpy(), HEIGHT, WIDTH)[0]


def _time(rounds: int, plain: Callable[[], object], *ours: Callable[[], object]) -> list[Times]:
    for work in (plain, *ours):
        work()
    rows = [[_seconds(work) for work in (plain, *ours)] for _ in range(rounds)]
    return [
        Times(
            plain=statistics.median(row[0] for row in rows),
            ours=statistics.median(row[i] for row in rows),
            ratio=statistics.median(row[i] / row[0] for row in rows),
        )
        for i in range(1, 1 + len(ours))
    ]


def _seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 1 where the masks are not the same."""
    parser = argparse.ArgumentParser(prog="python -m tests.patchdct.bench_head", description="Time the mask head.")
    parser.add_argument("--rois", type=int, default=100)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = measure(rois=options.rois, classes=options.classes, rounds=options.rounds, blocks=options.blocks)
    print(f"as built: {result.built}")
    print(f"optimised: {result.optimised}")
    print(f"steps that differ: {result.steps}")
    print(
        f"{result.changed} of {result.patches} patches change class, others differ by {result.difference:.2g} at most; "
        f"{result.rles} of {result.masks} masks have another RLE"
    )
    return int(result.changed > ROUNDED * result.patches or result.difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
