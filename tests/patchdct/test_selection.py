"""Proposals and detections of a batch, selected together: those of detectron2, and the host seldom waits for a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import nms

from patchdct import dct, fast, scenes, selection
from patchdct.build import build_model
from patchdct.checkpoint import read_checkpoint
from patchdct.config import load_config
from patchdct.predict import Predictor, encode, fetch
from tests.patchdct import small, waits

SIZES = [(64, 96), (60, 90), (64, 70)]
#: The score of each of seven classes that are equally likely.
SEVENTH = torch.zeros(7).softmax(0)[0].item()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def batched(model: nn.Module) -> nn.Module:
    selection.batch_selections(model)
    return model


def same(found: list[Instances], expected: list[Instances]) -> None:
    """To the bit, and in the same order."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.image_size == theirs.image_size
        assert ours.get_fields().keys() == theirs.get_fields().keys()
        for name, value in theirs.get_fields().items():
            one, other = (x.tensor if isinstance(x, Boxes) else x for x in (ours.get(name), value))
            assert one.dtype == other.dtype
            assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("step", "waited"),
    [
        (lambda gpu, cpu: gpu.sum().item(), 1),
        (lambda gpu, cpu: bool((gpu > 0).all()), 1),
        (lambda gpu, cpu: gpu.nonzero(), 1),
        (lambda gpu, cpu: gpu[gpu > 0], 1),
        (lambda gpu, cpu: gpu.masked_select(gpu > 0), 1),
        (lambda gpu, cpu: gpu.unique(), 1),
        (lambda gpu, cpu: torch.equal(gpu, gpu), 1),
        (lambda gpu, cpu: nms(gpu[:, None].repeat(1, 4), gpu, 0.5), 1),
        (lambda gpu, cpu: gpu[[0, 1]], 1),
        (lambda gpu, cpu: gpu.cpu(), 1),
        (lambda gpu, cpu: cpu.to(gpu), 1),
        (lambda gpu, cpu: torch.tensor([1.0], device=gpu.device), 1),
        (lambda gpu, cpu: cpu.to(gpu.device, non_blocking=True), 1),
        (lambda gpu, cpu: cpu.pin_memory().to(gpu.device, non_blocking=True), 0),
        (lambda gpu, cpu: gpu.to("cpu", non_blocking=True), 0),
        (lambda gpu, cpu: gpu.repeat_interleave((gpu > 0).long()), 1),
        (lambda gpu, cpu: gpu.repeat_interleave((gpu > 0).long(), output_size=2), 0),
        (lambda gpu, cpu: gpu[gpu.argsort()[:2]].add_(1).unsqueeze_(0).clamp(min=0), 0),
        (lambda gpu, cpu: torch.arange(3, device=gpu.device) + torch.where(gpu > 0, gpu, 0.0), 0),
    ],
)
def test_what_waits(step: Callable[[Tensor, Tensor], object], waited: int):
    """A counter that overlooks an operation would let a wait for each image come back unseen."""
    cpu = torch.tensor([1.0, -2.0, 3.0])
    with waits.counted() as quietly:
        gpu = cpu.pin_memory().to(waits.GPU, non_blocking=True)
    assert quietly.total == 0
    with waits.counted() as counted, torch.inference_mode():
        step(gpu, cpu)
    assert counted.total == waited
    assert all("test_selection.py" in place for place in counted.at)


def test_operands_in_two_memories():
    """What a GPU would refuse must not pass where there is none."""
    with waits.counted(), pytest.raises(RuntimeError, match="expected all tensors to be on the GPU"):
        torch.ones(2, device=waits.GPU) + torch.ones(2)


@pytest.fixture(scope="module")
def trained() -> tuple[GeneralizedRCNN, Any]:
    """The demo's model and its config."""
    checkpoint = read_checkpoint(small.CONFIGS / "patchdct_demo.pth")
    assert checkpoint.config is not None
    cfg = load_config(text=checkpoint.config)
    return build_model(cfg, weights=checkpoint)[0], cfg


@pytest.fixture
def tables() -> Iterator[None]:
    """What is kept for a GPU that is only pretended must not reach a real one."""
    yield
    for kept in (dct._tables, dct._decoding_map):
        kept.cache_clear()


@pytest.mark.usefixtures("tables")
def test_waits_of_a_batch(trained):
    """The GPU stands still where the host waits: five times a batch, and once for the end, however many images."""
    model, cfg = trained
    pictures = [scenes.draw_scene(seed).image for seed in range(8)]
    expected = Predictor(model, cfg)(pictures)
    with waits.counted():
        predictor = Predictor(fast.optimised(waits.to_gpu(copy.deepcopy(model))), cfg)
        predictor.find([predictor.prepare(pictures[0])])  # what is made once is not counted
    for count in (1, 2, 8):
        with waits.counted() as counted:
            found = predictor.find([predictor.prepare(image) for image in pictures[:count]])
            predictions = [encode(one) for one in fetch(found).wait()]
        assert counted.total == 6, "\n".join(counted.at)
        for one, other in zip(predictions, expected, strict=False):
            assert one.counts == other.counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [1, 1 << 24])
@pytest.mark.parametrize("smallest", [0.0, 6.0])
def test_proposals(smallest, pairs, dtype, model, generator, monkeypatch):
    """Boxes that are not finite, empty, small or outside, equal scores, few anchors: the proposals of detectron2."""
    monkeypatch.setattr(selection, "_PAIRS", pairs)
    rpn = model.proposal_generator
    monkeypatch.setattr(rpn, "min_box_size", smallest)
    anchors = rpn.anchor_generator([torch.zeros(3, 1, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32)])
    logits = [torch.randn(3, len(level), generator=generator).mul(4).round() / 4 for level in anchors]
    deltas = [torch.randn(3, len(level), 4, generator=generator) * 0.7 for level in anchors]
    for level, (scores, moves) in enumerate(zip(logits, deltas, strict=True)):
        scores[0, level], scores[1, level], moves[2, :5, level] = torch.nan, torch.inf, torch.nan
        moves[0, 5:9, :2] = 50.0  # outside
    logits[1][1], deltas[2][1] = torch.nan, torch.inf
    logits, deltas = ([level.to(dtype) for level in levels] for levels in (logits, deltas))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        expected = RPN.predict_proposals(rpn, anchors, logits, deltas, SIZES)
        found = _as(rpn, selection.BatchedRPN).predict_proposals(anchors, logits, deltas, SIZES)
    assert [len(one) for one in expected] == [20, 20, 20]
    same(found, expected)


def _as(module: nn.Module, form: type) -> Any:
    """The same module, of another class."""
    other = object.__new__(form)
    other.__dict__.update(module.__dict__)
    return other


def test_no_proposal(model):
    """Where a model that has diverged finds nothing in one image, the others keep their proposals."""
    rpn = model.proposal_generator
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))] * 2
    logits = [torch.tensor([[torch.nan], [2.0], [-torch.inf]]), torch.tensor([[torch.nan], [3.0], [torch.nan]])]
    deltas = [torch.zeros(3, 1, 4), torch.zeros(3, 1, 4)]
    expected = RPN.predict_proposals(rpn, anchors, logits, deltas, SIZES)
    found = _as(rpn, selection.BatchedRPN).predict_proposals(anchors, logits, deltas, SIZES)
    assert [len(one) for one in found] == [0, 2, 0]
    same(found, expected)


def head_inputs(generator: torch.Generator, classes: int, lengths: list[int]) -> tuple[Any, list[Instances]]:
    """What a box head says of proposals, many of them twice, some of it not finite."""
    proposals = []
    for length, (height, width) in zip(lengths, SIZES, strict=True):
        corners = torch.rand(length, 2, 2, generator=generator) * torch.tensor([width, height])
        boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], 1)
        twice = boxes[torch.arange(length) // 2]
        proposals.append(Instances((height, width), proposal_boxes=Boxes(twice)))
    total = sum(lengths)
    scores = torch.randn(total, 7, generator=generator).mul(2).round()
    deltas = torch.randn(total, 4 * classes, generator=generator)
    if total > 4:
        scores[2] = 0.0
        scores[3], deltas[4, 1] = torch.nan, torch.inf
    return (scores, deltas), proposals


@pytest.mark.parametrize("limit", [-1, 0, 7])
@pytest.mark.parametrize("lengths", [[40, 3, 25], [0, 12, 5], [0, 0, 0]])
@pytest.mark.parametrize("classes", [1, 6])
@pytest.mark.parametrize("threshold", [0.05, SEVENTH, 0.3, 1.0])
def test_detections(threshold, classes, lengths, limit, model, generator, monkeypatch):
    """Equal scores, one box for all classes, images without proposals or detections: the detections of detectron2."""
    outputs = model.roi_heads.box_predictor
    monkeypatch.setattr(outputs, "test_score_thresh", threshold)
    monkeypatch.setattr(outputs, "test_topk_per_image", limit)
    predictions, proposals = head_inputs(generator, classes, lengths)
    expected, from_where = FastRCNNOutputLayers.inference(outputs, predictions, proposals)
    found, origins = _as(outputs, selection.BatchedOutputLayers).inference(predictions, proposals)
    if sum(lengths) and threshold < 0.5 and limit:
        assert max(len(one) for one in expected) >= 5
    same(found, expected)
    finite = torch.arange(sum(lengths))[[sum(lengths) <= 4 or row not in (3, 4) for row in range(sum(lengths))]]
    for i, (ours, theirs) in enumerate(zip(origins, from_where, strict=True)):
        first, end = sum(lengths[:i]), sum(lengths[: i + 1])
        assert torch.equal(ours, finite[(finite >= first) & (finite < end)][theirs] - first)  # who counts finite ones


def test_overlap_at_the_threshold():
    """An IoU of exactly the threshold is allowed."""
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0], [0.0, 0.0, 8.0, 5.0]])[None, None]
    kept, numbers = selection.suppress(boxes, torch.ones(1, 1, 3, dtype=torch.bool), 0.5)
    assert kept.tolist() == [[[True, True, False]]]
    assert numbers == [2]


def test_too_many_pairs(model, generator, monkeypatch):
    """A model of one level or a low threshold leaves so many boxes that all their pairs would fill the memory."""
    monkeypatch.setattr(selection, "_MOST", 10)
    monkeypatch.delattr(selection, "suppress")
    outputs, inputs = model.roi_heads.box_predictor, head_inputs(generator, 6, [40, 3, 25])
    found, _ = _as(outputs, selection.BatchedOutputLayers).inference(*inputs)
    same(found, FastRCNNOutputLayers.inference(outputs, *inputs)[0])
    test_proposals(0.0, 1, torch.float32, model, generator, monkeypatch)


def test_long_chain(model):
    """Boxes each of which overlaps the next alone: suppression must go on until every second one is left."""
    count = 5 * selection._ROUNDS
    left = torch.arange(count) * 4.0
    anchors = [Boxes(torch.stack([left, torch.zeros(count), left + 30, torch.full((count,), 9.0)], 1))]
    rpn = _as(model.proposal_generator, selection.BatchedRPN)
    rpn.pre_nms_topk, rpn.post_nms_topk = {False: count}, {False: count}
    logits, deltas = [-left[None] / 100], [torch.zeros(1, count, 4)]
    [found] = rpn.predict_proposals(anchors, logits, deltas, [(10, 1000)])
    assert torch.equal(found.proposal_boxes.tensor, anchors[0].tensor[::2])


def test_pooled_features(generator):
    """Features of a box from another level or image, and levels or images without boxes."""
    pooler = ROIPooler(7, [1 / 4, 1 / 8, 1 / 16], 0, "ROIAlignV2")
    maps = [torch.randn(3, 5, 512 >> i, 512 >> i, generator=generator) for i in (2, 3, 4)]
    corners = torch.rand(40, 2, 2, generator=generator) * 500
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    tiny = torch.cat([corners[:9, 0], corners[:9, 0] + 5], 1)
    for of_images in ([boxes, boxes[:0], tiny], [tiny, tiny, tiny], [boxes[:0]] * 3):
        lists = [Boxes(of_image) for of_image in of_images]
        expected = pooler(maps, lists)
        assert torch.equal(_as(pooler, selection.SortedROIPooler)(maps, lists), expected)
    one = ROIPooler(7, [1 / 4], 0, "ROIAlignV2")
    assert torch.equal(_as(one, selection.SortedROIPooler)(maps[:1], lists), one(maps[:1], lists))


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_anchors(offset):
    """Anchors in another order, or a pixel off."""
    options = {"sizes": [[16, 20], [32, 40]], "aspect_ratios": [[0.5, 1.0, 2.0]], "strides": [4, 8]}
    anchors = DefaultAnchorGenerator(**options, offset=offset)
    maps = [torch.zeros(1, 1, 16, 24), torch.zeros(1, 1, 8, 12)]
    for ours, theirs in zip(
        batched(DefaultAnchorGenerator(**options, offset=offset))(maps), anchors(maps), strict=True
    ):
        assert torch.equal(ours.tensor, theirs.tensor)


def test_what_stays_as_it_is():
    """A part with rules of its own must not lose them to ours."""

    class Own(ROIPooler):
        pass

    parts = nn.ModuleList([Own(7, [1 / 4], 0, "ROIAlign"), ROIPooler(7, [1 / 4], 0, "ROIAlign"), nn.Linear(1, 1)])
    assert [type(part) for part in batched(parts)] == [Own, selection.SortedROIPooler, nn.Linear]
