"""PatchDCT (Wen et al., ICLR 2023) on detectron2.

Importing this package registers `MaskRCNNPatchDCTHead`, `PatchDCTROIHeads`, `PatchDCT_UPPER_BOUND_RCNN` and the
backbones with detectron2.
"""

import warnings

with warnings.catch_warnings():
    # detectron2 and torchvision, at import
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    # first, as it says in a sentence how to get a missing detectron2
    from patchdct.config import add_patchdct_config, add_swinb_config  # isort: split
    from patchdct import backbones, mask_head, roi_heads, swin

__all__ = ["add_patchdct_config", "add_swinb_config", "backbones", "mask_head", "roi_heads", "swin"]
