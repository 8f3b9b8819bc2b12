"""ROI heads with a second, finer pooler for the mask head; and the upper-bound evaluation of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads, select_foreground_proposals
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor

#: So many masks of a batch are predicted at once, which bounds memory: 42 x 42 fine features of a RoI are 1.8 MB, in
#: each of several layers. A GPU is busy with fewer, and a CPU with one.
_AT_ONCE, _AT_ONCE_ON_CPU = 512, 64


@ROI_HEADS_REGISTRY.register()
class PatchDCTROIHeads(StandardROIHeads):
    """`StandardROIHeads` whose mask head also sees features pooled from the finest level, whatever the RoI's size.

    Without blocks that refine (NUM_STAGE 1) the head has no use for those, and they are not pooled.
    """

    @configurable
    def __init__(
        self, *, fine_features: Sequence[str], fine_mask_pooler: ROIPooler | None, eval_gt: bool, **kwargs: Any
    ) -> None:
        """`fine_mask_pooler` pools `fine_features` for the head's blocks; `eval_gt` lets inference take targets."""
        super().__init__(**kwargs)
        self.fine_features = list(fine_features)
        self.fine_mask_pooler = fine_mask_pooler
        self.eval_gt = eval_gt

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.ROI_MASK_HEAD
        pooler = None
        if head.NUM_STAGE > 1:
            pooler = ROIPooler(
                output_size=head.FINE_FEATURES_RESOLUTION,
                scales=[1.0 / input_shape[name].stride for name in head.FINE_FEATURES],
                sampling_ratio=head.POOLER_SAMPLING_RATIO,
                pooler_type=head.POOLER_TYPE,
            )
        return {
            **super()._init_mask_head(cfg, input_shape),
            "fine_features": head.FINE_FEATURES,
            "fine_mask_pooler": pooler,
            "eval_gt": head.EVAL_GT,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As `StandardROIHeads.forward`; under EVAL_GT, inference needs `targets` and matches detections to them."""
        if self.training or not self.eval_gt:
            return super().forward(images, features, proposals, targets)
        if targets is None:
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.EVAL_GT needs ground truth at inference: PatchDCT_UPPER_BOUND_RCNN takes it from "
                'the "instances" of every input, as DatasetMapper_with_GT gives them'
            )
        found = self._forward_box(features, proposals)
        found = [self._match(f, t) for f, t in zip(found, targets, strict=True)]
        return self.forward_with_given_boxes(features, found), {}

    @torch.no_grad()
    def _match(self, found: Instances, truth: Instances) -> Instances:
        """Give each detection the ground truth of highest IoU, however low; of background class below the threshold."""
        if not len(truth):
            return found
        matched, labels = self.proposal_matcher(pairwise_iou(truth.gt_boxes, found.pred_boxes))
        for name, value in truth.get_fields().items():
            if name.startswith("gt_") and not found.has(name):
                found.set(name, value[matched])
        found.gt_classes = torch.where(labels == 1, found.gt_classes, self.num_classes)
        return found

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
            return self.mask_head(*self._pooled(features, [x.proposal_boxes for x in instances]), instances)
        names = {*self.mask_in_features, *self.fine_features}
        features = {name: features[name].contiguous() for name in names}  # once, which the poolers else do each time
        on_cpu = all(maps.device.type == "cpu" for maps in features.values())
        parts = []
        for part in _parts(instances, _AT_ONCE_ON_CPU if on_cpu else _AT_ONCE):
            found = self.mask_head(*self._pooled(features, [x.pred_boxes for x in part]), part)
            parts.append([(x.pred_masks, x.evidence) if x.has("evidence") else (x.pred_masks,) for x in found])
        for image, of_image in zip(instances, zip(*parts, strict=True), strict=True):
            for name, values in zip(("pred_masks", "evidence"), zip(*of_image, strict=True), strict=False):
                image.set(name, torch.cat(values))
        return instances

    def _pooled(self, features: dict[str, Tensor], boxes: list[Boxes]) -> tuple[Tensor, Tensor | None]:
        """What the mask head sees of each box: pooled features, and fine ones if it has blocks."""
        pooled = self.mask_pooler([features[f] for f in self.mask_in_features], boxes)
        if self.fine_mask_pooler is None:
            return pooled, None
        return pooled, self.fine_mask_pooler([features[f] for f in self.fine_features], boxes)


def _parts(instances: Sequence[Instances], size: int) -> Iterator[list[Instances]]:
    """Some RoIs of each image, `size` of all together, in order; once where there are none."""
    starts = [0, *accumulate(len(image) for image in instances)]
    for first in range(0, max(1, starts[-1]), size):
        bounds = [(max(0, first - start), max(0, first + size - start)) for start in starts[:-1]]
        yield [image[begin:end] for image, (begin, end) in zip(instances, bounds, strict=True)]


@META_ARCH_REGISTRY.register()
class PatchDCT_UPPER_BOUND_RCNN(GeneralizedRCNN):  # noqa: N801 - the name that published configs use
    """`GeneralizedRCNN` that hands ground truth to its ROI heads at inference when EVAL_GT is set."""

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """As `GeneralizedRCNN.inference`; inputs carry "instances" with the ground truth."""
        if not self.roi_heads.eval_gt or detected_instances is not None:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        known = all("instances" in x for x in batched_inputs)
        truth = [x["instances"].to(self.device) for x in batched_inputs] if known else None
        results, _ = self.roi_heads(images, features, proposals, truth)
        if not do_postprocess:
            return results
        return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
