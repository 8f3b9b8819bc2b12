"""Time the mask head's inference against the paper's plain form, with the widths of the published models.

    python -m tests.patchdct.bench_head [--rois 100] [--classes 80] [--rounds 2] [--blocks 1]

Both compute the masks of the same random features in turn (A B A B ...) on one torch thread, after a run of each:

    A  plain_form.masks: all classes predicted, full decoding by FFT and then resizing, every patch decoded
    B  MaskRCNNPatchDCTHead

The output has the median times, the median of the ratios A / B of neighbouring times, the number of patches that change
class, and the largest difference between masks in the patches that do not; then the same times of only those steps in
which A and B differ, as the convolutions that they share are nearly all. Times depend on the machine and its load, the
ratios less. The exit status is 1 where a patch changes class or the difference is above 1e-4. With the defaults it
takes minutes.
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

from patchdct import dct, patches
from patchdct.config import load_config
from patchdct.mask_head import MaskRCNNPatchDCTHead
from tests.patchdct import plain_form, small

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Median seconds of both ways, and the median of the ratios of neighbouring times."""

    plain: float
    ours: float
    ratio: float

    def __str__(self) -> str:
        return f"plain form {self.plain:.3g} s, head {self.ours:.3g} s, ratio {self.ratio:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Times of the whole head and of the steps that differ; patches of another class, largest difference of others."""

    whole: Times
    steps: Times
    changed: int
    patches: int
    difference: float


def build(classes: int, blocks: int) -> MaskRCNNPatchDCTHead:
    """The head of the published R50 config with random weights, whose patches fall into all classes."""
    weights = [1.0] * (blocks + 1)
    overrides = ("MODEL.ROI_MASK_HEAD.NUM_STAGE", blocks + 1, "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE", weights)
    cfg = load_config(small.CONFIGS / "patchdct_r50_1x.yaml", [*overrides, "MODEL.ROI_HEADS.NUM_CLASSES", classes])
    head = MaskRCNNPatchDCTHead(cfg, ShapeSpec(channels=256, width=14, height=14)).eval()
    with torch.no_grad():
        head.predictor_bfg.weight *= 100
    return head


@torch.inference_mode()
def measure(*, rois: int, classes: int, rounds: int, blocks: int) -> Result:
    """Time both ways, one after the other, and compare what they give."""
    torch.manual_seed(0)
    head = build(classes, blocks)
    x, fine = torch.randn(rois, 256, 14, 14), torch.randn(rois, 256, 42, 42)
    found = Instances((800, 1216))
    found.pred_classes = torch.randint(classes, (rois,))

    whole_mask = head.whole_mask(x)
    expected, decided = plain_form.masks(head, x, fine, found.pred_classes)
    logits, vectors = head.refine(whole_mask, fine, found.pred_classes)[-1]
    classes_found = patches.classify(logits, head.patch_threshold)
    changed = classes_found != decided
    differences = (patches.decode(classes_found, vectors, 8) - patches.split(expected, 8)).abs().amax((1, 2))
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

    return Result(
        whole=_time(
            lambda: plain_form.masks(head, x, fine, found.pred_classes), lambda: head(x, fine, [found]), rounds
        ),
        steps=_time(plain_steps, our_steps, 5 * rounds),
        changed=int(changed.sum()),
        patches=len(changed),
        difference=float(differences[~changed].max()),
    )


def _time(plain: Callable[[], object], ours: Callable[[], object], rounds: int) -> Times:
    pairs = [(_seconds(plain), _seconds(ours)) for _ in range(rounds)]
    return Times(
        plain=statistics.median(a for a, _ in pairs),
        ours=statistics.median(b for _, b in pairs),
        ratio=statistics.median(a / b for a, b in pairs),
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 1 where the masks are not the same."""
    parser = argparse.ArgumentParser(prog="python -m tests.patchdct.bench_head", description="Time the mask head.")
    parser.add_argument("--rois", type=int, default=100)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = measure(rois=options.rois, classes=options.classes, rounds=options.rounds, blocks=options.blocks)
    print(f"whole head: {result.whole}")
    print(f"steps that differ: {result.steps}")
    print(
        f"{result.changed} of {result.patches} patches change class, others differ by {result.difference:.2g} at most"
    )
    return int(result.changed > 0 or result.difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
