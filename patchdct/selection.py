"""Proposals and detections of a whole batch at once, so that the host seldom waits for a GPU.

detectron2 goes from image to image and from level to level, and at each step asks the GPU how many boxes are left. Here
boxes that drop out stay in place, marked, and the host asks for the numbers of all images together: once for proposals,
twice for detections, once for each pooler of several levels. Results are detectron2's, in its order; boxes of the same
score keep the order in which they were found. Boxes are compared as they are, where detectron2 first moves those of
different classes or levels apart, which rounds them.

Shape legend: N images, L levels of the feature pyramid, n boxes of a group (of a level, or of an image), R proposals of
all images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

#: With more boxes in a group, all their pairs take more memory than the waits are worth: detectron2 selects then.
_MOST = 4096
#: So many pairs are compared at once, which bounds memory to a few times 64 MB.
_PAIRS = 1 << 24
#: Rounds of suppression between two questions whether all is settled.
_ROUNDS = 16


def batch_selections(model: nn.Module) -> None:
    """Let detectron2's own RPN, box predictor, poolers and anchors take the forms of this module, in place.

    Classes derived from them stay as they are. For inference only.
    """
    for module in model.modules():
        module.__class__ = _FORMS.get(type(module), type(module))


def suppress(
    boxes: Tensor, candidates: Tensor, threshold: float, classes: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """Non-maximum suppression within groups of boxes, best first, all pairs of a group at once.

    The host waits once, for the numbers that are kept; and again in long chains of boxes each of which overlaps the
    next. Results do not depend on what else is in the batch.

    Args:
        boxes: float32 [N, L, n, 4] (x0, y0, x1, y1), in falling order of scores.
        candidates: bool [N, L, n], the boxes that take part.
        threshold: a box goes if its IoU with one that is kept before it is larger.
        classes: [N, L, n]; only boxes of one class suppress each other. None if they all are.

    Returns:
        Which boxes are kept, bool [N, L, n], and how many they are in each image.
    """
    groups, there = boxes.flatten(0, 1), candidates.flatten(0, 1)
    size = max(1, _PAIRS // max(1, boxes.shape[2] ** 2))
    overlaps = torch.cat([_overlaps(part, threshold) for part in groups.split(size)])
    if classes is not None:
        of_class = classes.flatten(0, 1)
        overlaps &= of_class[:, :, None] == of_class[:, None]
    kept, settled = there, False
    while not settled:
        # Each round settles at least the next box of every group, and in practice many.
        for _ in range(_ROUNDS):
            before, kept = kept, there & ~(overlaps & kept[:, :, None]).any(1)
        counts = kept.view_as(candidates).flatten(1).sum(1)
        *numbers, settled = torch.cat([counts, (kept == before).all()[None]]).cpu().tolist()
    return kept.view_as(candidates), numbers


def _overlaps(boxes: Tensor, threshold: float) -> Tensor:
    """Whether box i comes before box j and overlaps it by more than `threshold`: [G, n, 4] -> bool [G, i, j]."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    areas = (x1 - x0) * (y1 - y0)
    width = torch.minimum(x1[:, :, None], x1[:, None]).sub_(torch.maximum(x0[:, :, None], x0[:, None])).clamp_(min=0)
    height = torch.minimum(y1[:, :, None], y1[:, None]).sub_(torch.maximum(y0[:, :, None], y0[:, None])).clamp_(min=0)
    inner = width.mul_(height)
    union = (areas[:, :, None] + areas[:, None]).sub_(inner)
    return inner.div_(union).gt(threshold).triu_(1)


def _best(scores: Tensor, kept: Tensor, limit: int) -> Tensor:
    """The places of what is kept, best first, then of others: [N, n] -> int64 [N, at most `limit`]."""
    return scores.masked_fill(~kept, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :limit]


def _clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [..., 4] within images of the sizes (width, height), float32 [..., 2]."""
    return torch.minimum(boxes.unflatten(-1, (2, 2)).clamp(min=0), sizes[..., None, :]).flatten(-2)


def _uploaded(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, for which the host does not wait."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _sizes(image_sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(height, width) of each image -> float32 [N, 2] (width, height)."""
    return _uploaded(torch.tensor([(width, height) for height, width in image_sizes], dtype=torch.float32), device)


def _image_of_each(lengths: Sequence[int], device: torch.device) -> Tensor:
    """The number of the image of each of its boxes, int64."""
    return _uploaded(torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)), device)


class BatchedRPN(RPN):
    """A region proposal network that chooses the proposals of all images and levels together, in inference."""

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """As `RPN.predict_proposals`; only what the levels' best anchors say of boxes is decoded."""
        most = min(self.pre_nms_topk[False], max(logits.shape[1] for logits in pred_objectness_logits))
        if most > _MOST:
            return super().predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)
        levels = [
            self._best_of_level(level, most)
            for level in zip(anchors, pred_objectness_logits, pred_anchor_deltas, strict=True)
        ]
        boxes, scores = (torch.stack(of_levels, 1) for of_levels in zip(*levels, strict=True))  # [N, L, n, ...]
        finite = boxes.isfinite().all(-1) & scores.isfinite()
        boxes = _clipped(boxes, _sizes(image_sizes, boxes.device)[:, None, None])
        candidates = finite & (boxes[..., 2:] - boxes[..., :2] > self.min_box_size).all(-1)
        kept, numbers = suppress(boxes, candidates, self.nms_thresh)
        best = _best(scores.flatten(1), kept.flatten(1), self.post_nms_topk[False])
        boxes = boxes.flatten(1, 2).take_along_dim(best[:, :, None], 1)
        scores = scores.flatten(1).take_along_dim(best, 1)
        return [
            Instances(size, proposal_boxes=Boxes(boxes[i, :number]), objectness_logits=scores[i, :number])
            for i, (size, number) in enumerate(zip(image_sizes, numbers, strict=True))
        ]

    def _best_of_level(self, level: tuple[Boxes, Tensor, Tensor], most: int) -> tuple[Tensor, Tensor]:
        """Boxes [N, n, 4] and scores [N, n] of a level's best anchors; without score where it has fewer."""
        anchors, logits, deltas = level
        scores, chosen = logits.topk(min(most, logits.shape[1]), dim=1)
        near, moved = anchors.tensor[chosen], deltas.take_along_dim(chosen[:, :, None], 1)
        boxes = self.box2box_transform.apply_deltas(moved.flatten(0, 1), near.flatten(0, 1)).view_as(near)
        missing = most - scores.shape[1]
        return F.pad(boxes, (0, 0, 0, missing)), F.pad(scores, (0, missing), value=-torch.inf)


class BatchedOutputLayers(FastRCNNOutputLayers):
    """A box predictor that chooses the detections of all images together, in inference."""

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """As `FastRCNNOutputLayers.inference`: the detections of each image, and the proposals that they come from."""
        lengths, sizes = [len(image) for image in proposals], [image.image_size for image in proposals]
        boxes = torch.cat(self.predict_boxes(predictions, proposals)).unflatten(1, (-1, 4))  # [R, K or 1, 4]
        scores = torch.cat(self.predict_probs(predictions, proposals))
        image = _image_of_each(lengths, boxes.device)
        finite = boxes.isfinite().all(-1).all(-1) & scores.isfinite().all(-1)
        chosen = (scores[:, :-1] > self.test_score_thresh) & finite[:, None]
        counts = image.new_zeros(len(proposals)).index_add_(0, image, chosen.sum(1))
        numbers = counts.cpu().tolist()
        most = max(numbers)
        if most > _MOST:
            return super().inference(predictions, proposals)

        # Those of each image in a row, [N, n], which is filled up where an image has fewer.
        position = torch.arange(most, device=boxes.device)
        candidates = position < counts[:, None]
        places = torch.where(candidates, (counts.cumsum(0) - counts)[:, None] + position, 0)
        rows, classes = chosen.nonzero_static(size=sum(numbers))[places].unbind(-1)
        order = _best(scores[rows, classes], candidates, most)
        rows, classes = rows.take_along_dim(order, 1), classes.take_along_dim(order, 1)
        found = _clipped(boxes[rows, classes if boxes.shape[1] > 1 else 0], _sizes(sizes, boxes.device)[:, None])
        kept, numbers = suppress(found[:, None], candidates[:, None], self.test_nms_thresh, classes[:, None])

        limit = self.test_topk_per_image if self.test_topk_per_image >= 0 else most
        best = _best(scores[rows, classes], kept[:, 0], limit)
        rows, classes = rows.take_along_dim(best, 1), classes.take_along_dim(best, 1)
        found, ranks = found.take_along_dim(best[:, :, None], 1), scores[rows, classes]
        detections, origins = [], []
        for i, (first, number) in enumerate(zip(accumulate([0, *lengths[:-1]]), numbers, strict=True)):
            of_image = (i, slice(number))
            columns = {"pred_boxes": Boxes(found[of_image]), "scores": ranks[of_image]}
            detections.append(Instances(sizes[i], **columns, pred_classes=classes[of_image]))
            origins.append(rows[of_image] - first)
        return detections, origins


class SortedROIPooler(ROIPooler):
    """A pooler that asks once how many boxes each level has."""

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """As `ROIPooler.forward`: maps of each level and boxes of each image -> [R, C, output size, output size]."""
        boxes = torch.cat([of_image.tensor for of_image in box_lists])
        image = _image_of_each([len(of_image) for of_image in box_lists], boxes.device)
        rois = torch.cat([image[:, None].to(boxes), boxes], 1)
        if len(x) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        numbers = (levels[:, None] == torch.arange(len(x), device=levels.device)).sum(0).cpu().tolist()
        pooled = x[0].new_empty((len(rois), x[0].shape[1], *self.output_size))
        for pool, maps, of_level in zip(self.level_poolers, x, levels.argsort(stable=True).split(numbers), strict=True):
            pooled[of_level] = pool(maps, rois[of_level])
        return pooled


class AnchorsInPlace(DefaultAnchorGenerator):
    """Anchors that are made on the device where they are used."""

    def _grid_anchors(self, grid_sizes: list[Any]) -> list[Tensor]:
        anchors = []
        for (height, width), stride, cell in zip(grid_sizes, self.strides, self.cell_anchors, strict=True):
            y, x = (
                torch.arange(self.offset * stride, side * stride, stride, dtype=torch.float32, device=cell.device)
                for side in (height, width)
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
            anchors.append((shifts + cell).view(-1, 4))
        return anchors


_FORMS: dict[type, type] = {
    RPN: BatchedRPN,
    FastRCNNOutputLayers: BatchedOutputLayers,
    ROIPooler: SortedROIPooler,
    DefaultAnchorGenerator: AnchorsInPlace,
}
