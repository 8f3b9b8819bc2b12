"""Model configs: the published values, and one sentence for whatever is wrong with a file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg

from patchdct.config import add_patchdct_config, add_swinb_config, check_config, load_config
from patchdct.errors import MissingDetectron2Error, ModelError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"

# One row of the published table per key; columns as in NAMES.
NAMES = ("r50_1x", "r50_1x_2stage", "r101_3x", "rx101_3x", "swinb_3x", "r50_city_1x", "r50_city_1x_fine")
R50, BGR, RGB = "detectron2://ImageNetPretrained/MSRA/R-50.pkl", [103.53, 116.28, 123.675], [123.675, 116.28, 103.53]
COCO = (*range(640, 801, 32),)
CITY = (*range(800, 1025, 32),)
LONG = (210000, 250000)
CITY_TRAIN = ("cityscapes_fine_instance_seg_train",)
CITY_TEST = ("cityscapes_fine_instance_seg_val",)
TABLE = {
    "MODEL.WEIGHTS": (
        *(R50, R50, R50.replace("R-50", "R-101"), R50.replace("MSRA/R-50", "FAIR/X-101-32x8d")),
        *("swin_base_patch4_window7_224_22k_d2.pth", R50, "output/patchdct_r50_1x/model_final.pth"),
    ),
    "MODEL.RESNETS.DEPTH": (50, 50, 101, 101, 50, 50, 50),
    "MODEL.RESNETS.NUM_GROUPS": (1, 1, 1, 32, 1, 1, 1),
    "MODEL.RESNETS.WIDTH_PER_GROUP": (64, 64, 64, 8, 64, 64, 64),
    "MODEL.RESNETS.STRIDE_IN_1X1": (True, True, True, False, True, True, True),
    "MODEL.BACKBONE.FREEZE_AT": (2, 2, 2, 2, -1, 2, 2),
    "MODEL.PIXEL_MEAN": (BGR, BGR, BGR, BGR, RGB, BGR, BGR),
    "MODEL.PIXEL_STD": (
        [1.0] * 3,
        [1.0] * 3,
        [1.0] * 3,
        [57.375, 57.12, 58.395],
        [58.395, 57.12, 57.375],
        *[[1.0] * 3] * 2,
    ),
    "INPUT.FORMAT": ("BGR", "BGR", "BGR", "BGR", "RGB", "BGR", "BGR"),
    "MODEL.ROI_HEADS.NUM_CLASSES": (80, 80, 80, 80, 80, 8, 8),
    "MODEL.ROI_MASK_HEAD.NUM_STAGE": (2, 3, 2, 2, 2, 2, 2),
    "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE": ([1.0] * 2, [0.5, 0.5, 0.8], *[[1.0] * 2] * 5),
    "DATASETS.TRAIN": (*[("coco_2017_train",)] * 5, CITY_TRAIN, CITY_TRAIN),
    "DATASETS.TEST": (
        *(("coco_2017_val",), ("coco_2017_val", "lvis_v0.5_val_cocofied")),
        *(*[("coco_2017_val",)] * 3, CITY_TEST, CITY_TEST),
    ),
    "INPUT.MIN_SIZE_TRAIN": (COCO, COCO, COCO, COCO, (*range(480, 801, 32),), CITY, CITY),
    "INPUT.MAX_SIZE_TRAIN": (1333, 1333, 1333, 1333, 1333, 2048, 2048),
    "INPUT.MIN_SIZE_TEST": (800, 800, 800, 800, 800, 1024, 1024),
    "INPUT.MAX_SIZE_TEST": (1333, 1333, 1333, 1333, 1333, 2048, 2048),
    "SOLVER.OPTIMIZER": ("SGD", "SGD", "SGD", "SGD", "AdamW", "SGD", "SGD"),
    "SOLVER.IMS_PER_BATCH": (16, 16, 16, 16, 16, 8, 8),
    "SOLVER.BASE_LR": (0.02, 0.02, 0.02, 0.02, 1e-4, 0.01, 0.01),
    "SOLVER.WEIGHT_DECAY": (1e-4, 1e-4, 1e-4, 1e-4, 0.05, 1e-4, 1e-4),
    "SOLVER.STEPS": ((60000, 80000), (60000, 80000), LONG, LONG, LONG, (18000,), (18000,)),
    "SOLVER.MAX_ITER": (90000, 90000, 270000, 270000, 270000, 24000, 24000),
    "SOLVER.CHECKPOINT_PERIOD": (90000, 90000, 90000, 270000, 90000, 12000, 24000),
    "SOLVER.AMP.ENABLED": (False, False, False, False, True, False, False),
    "TEST.EVAL_PERIOD": (0, 0, 0, 0, 10000, 0, 0),
    "OUTPUT_DIR": (
        *("output/patchdct_r50_1x/", "output/patchdct_r50_1x_2stage/", "output/patchdct_r101_3x/"),
        *("output/patchdct_rx101_3x/", "./output/patchdct_swinb_3x", "output/patchdct_r50_city_1x/"),
        "output/patchdct_r50_city_1x_fine/",
    ),
}
COMMON = {
    "VERSION": 2,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": True,
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "PatchDCTROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNPatchDCTHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.MASK_SIZE": 112,
    "INPUT.MASK_FORMAT": "polygon",
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WARMUP_ITERS": 1000,
}
DEFAULTS = {
    "IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "FINE_FEATURES": ["p2"],
    "FINE_FEATURES_RESOLUTION": 42,
    "DCT_VECTOR_DIM": 300,
    "MASK_SIZE": 128,
    "MASK_SIZE_ASSEMBLE": 112,
    "PATCH_SIZE": 8,
    "PATCH_DCT_VECTOR_DIM": 6,
    "HIDDEN_FEATURES": 1024,
    "PATCH_THRESHOLD": 0.30,
    "NUM_STAGE": 2,
    "MASK_LOSS_PARA": 1.0,
    "MASK_LOSS_PARA_EACH_STAGE": [1.0, 1.0],
    "DCT_LOSS_TYPE": "l1",
    "EVAL_GT": False,
}


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def refusal(path=None, overrides=(), **kwargs):
    """The sentence that a config is refused with."""
    with pytest.raises(ModelError) as caught:
        load_config(path, overrides, **kwargs)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_defaults_of_patchdct():
    """Another default silently changes every config that leaves the key out."""
    cfg = get_cfg()
    before = set(cfg.MODEL.ROI_MASK_HEAD)
    add_patchdct_config(cfg)
    added = {key: cfg.MODEL.ROI_MASK_HEAD[key] for key in cfg.MODEL.ROI_MASK_HEAD if key not in before}
    assert added == DEFAULTS
    assert {key: type(added[key]) for key in added} == {key: type(DEFAULTS[key]) for key in DEFAULTS}


def test_defaults_of_swin():
    """The authors' Swin-B config sets none of these and depends on them."""
    cfg = get_cfg()
    add_swinb_config(cfg)
    assert dict(cfg.MODEL.SWINT) == {
        "EMBED_DIM": 128,
        "OUT_FEATURES": ["stage2", "stage3", "stage4", "stage5"],
        "DEPTHS": [2, 2, 18, 2],
        "NUM_HEADS": [4, 8, 16, 32],
        "WINDOW_SIZE": 7,
        "MLP_RATIO": 4,
        "DROP_PATH_RATE": 0.2,
        "APE": False,
    }
    assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.FPN.TOP_LEVELS, cfg.SOLVER.OPTIMIZER) == (-1, 2, "AdamW")


@pytest.mark.parametrize("name", NAMES)
def test_published_config(name):
    """A config that drifts from the published table trains or labels with something else than it says."""
    cfg = load_config(CONFIGS / f"patchdct_{name}.yaml")
    check_config(cfg)
    assert {key: value(cfg, key) for key in TABLE} == {key: row[NAMES.index(name)] for key, row in TABLE.items()}
    assert {key: value(cfg, key) for key in COMMON} == COMMON
    for key in DEFAULTS.keys() - {"MASK_SIZE", "NUM_STAGE", "MASK_LOSS_PARA_EACH_STAGE"}:
        assert cfg.MODEL.ROI_MASK_HEAD[key] == DEFAULTS[key]
    swin = name == "swinb_3x"
    backbone, stages = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.IN_FEATURES
    assert backbone == ("build_swinb_fpn_backbone" if swin else "build_resnet_fpn_backbone")
    assert stages == [f"{'stage' if swin else 'res'}{i}" for i in range(2, 6)]


def test_table_is_complete():
    """A published config that nobody compares could say anything."""
    published = {path.stem for path in CONFIGS.glob("patchdct_*.yaml")} - {"patchdct_demo", "patchdct_nuclei"}
    assert published == {f"patchdct_{name}" for name in NAMES}
    assert all(len(row) == len(NAMES) for row in TABLE.values())


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN_3x", "mask_rcnn_X_101_32x8d_FPN_3x", "mask_rcnn_R_50_C4_1x"])
def test_config_of_detectron2(name):
    """Any instance segmentation config of detectron2 labels too, and means what it means there."""
    name = f"COCO-InstanceSegmentation/{name}.yaml"
    theirs = model_zoo.get_config(name)
    ours = load_config(model_zoo.get_config_file(name))
    check_config(ours)

    def leaves(node, prefix=""):
        for key, item in node.items():
            yield from leaves(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]

    assert {key: item for key, item in leaves(theirs) if value(ours, key) != item} == {}


def test_swin_defaults_hold_for_swin_only():
    """Swin's defaults must not unfreeze the ResNets' first stages, nor the ResNets' freeze a Swin config."""
    assert load_config().MODEL.BACKBONE.FREEZE_AT == 2
    text = "MODEL: {BACKBONE: {NAME: build_swinb_fpn_backbone}}"
    swin = load_config(text=text)
    assert (swin.MODEL.BACKBONE.FREEZE_AT, swin.SOLVER.OPTIMIZER) == (-1, "AdamW")
    assert load_config(None, ["MODEL.BACKBONE.FREEZE_AT", "1"], text=text).MODEL.BACKBONE.FREEZE_AT == 1


def test_overrides_are_last_and_typed():
    """Overrides come as strings from a command line and as values from YAML; both must arrive."""
    cfg = load_config(
        CONFIGS / "patchdct_r50_1x.yaml",
        [
            *("MODEL.ROI_HEADS.NUM_CLASSES", "5", "SOLVER.BASE_LR", "1e-3", "INPUT.MIN_SIZE_TRAIN", "(320, 352)"),
            *("MODEL.ROI_MASK_HEAD.EVAL_GT", True, "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA", 2, "OUTPUT_DIR", "there"),
        ],
    )
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5
    assert cfg.SOLVER.BASE_LR == 0.001
    assert cfg.INPUT.MIN_SIZE_TRAIN == (320, 352)
    assert cfg.MODEL.ROI_MASK_HEAD.EVAL_GT is True
    assert cfg.MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA == 2.0
    assert cfg.OUTPUT_DIR == "there"


def test_dumped_config_reads_back():
    """A checkpoint carries its config as text; labeling with it must not need the file."""
    cfg = load_config(CONFIGS / "patchdct_swinb_3x.yaml", ["MODEL.ROI_HEADS.NUM_CLASSES", 3])
    again = load_config(text=cfg.dump())
    assert json.dumps(again) == json.dumps(cfg)  # YAML has no tuples; in JSON they are equal to lists
    assert again.INPUT.MIN_SIZE_TRAIN == cfg.INPUT.MIN_SIZE_TRAIN


def test_config_is_frozen():
    """A config that code may change no longer says what the model is."""
    with pytest.raises(AttributeError, match="immutable"):
        load_config().MODEL.MASK_ON = True


def test_bases_in_a_list(tmp_path):
    """Later bases override earlier ones, and the file overrides them all."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("SOLVER: {MAX_ITER: 1, GAMMA: 0.5, MOMENTUM: 0.1}")
    (tmp_path / "sub" / "b.yaml").write_text("_BASE_: ../a.yaml\nSOLVER: {MAX_ITER: 2, GAMMA: 0.25}")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, sub/b.yaml]\nSOLVER: {MAX_ITER: 3}")
    solver = load_config(tmp_path / "c.yaml").SOLVER
    assert (solver.MAX_ITER, solver.GAMMA, solver.MOMENTUM) == (3, 0.25, 0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "MODEL: {ROI_MASK_HEAD: {NUM_STAGES: 2}}",
            "unknown key MODEL.ROI_MASK_HEAD.NUM_STAGES; the closest known key is ",
        ),
        (
            "MODEL: {ROI_MASK_HEAD: {NUM_STAGE: two}}",
            "MODEL.ROI_MASK_HEAD.NUM_STAGE takes values of type int, such as 2, not 'two'",
        ),
        (
            "MODEL: {ROI_MASK_HEAD: {NUM_STAGE: true}}",
            "MODEL.ROI_MASK_HEAD.NUM_STAGE takes values of type int, such as 2, not True",
        ),
        (
            "MODEL: {ROI_MASK_HEAD: {NUM_STAGE: }}",
            "MODEL.ROI_MASK_HEAD.NUM_STAGE takes values of type int, such as 2, not None",
        ),
        ("MODEL: {ROI_MASK_HEAD: {NUM_STAGE: {A: 1}}}", "unknown key MODEL.ROI_MASK_HEAD.NUM_STAGE.A"),
        (
            "MODEL: {ROI_MASK_HEAD: 5}",
            "MODEL.ROI_MASK_HEAD is a section with keys of its own and takes no value, but got 5",
        ),
        ("VERSION: 1", "VERSION must be 2, not 1"),
        ("MODEL:\n\tMASK_ON: True", "is not valid YAML at line 2: found character '\\t' that cannot start any token"),
        ("MODEL: \0", "is not valid YAML: "),
        ("- MODEL", "must hold KEY: value settings, not a list"),
        (
            "OUTPUT_DIR: !!python/object/apply:os.system ['exit 1']",
            "is not valid YAML at line 1: could not determine a con",
        ),
        ("_BASE_: missing.yaml", "cannot be read: No such file or directory"),
        ("_BASE_: http://example.com/a.yaml", "_BASE_ must be a local path or a list of local paths, not ['http://"),
        ("_BASE_: {a: 1}", "_BASE_ must be a local path or a list of local paths, not {'a': 1}"),
        ("_BASE_: model.yaml", "_BASE_ leads in a circle through"),
    ],
)
def test_bad_file(tmp_path, text, expected):
    """Each mistake in a file gives one sentence with the file and the key, not a traceback."""
    path = tmp_path / "model.yaml"
    path.write_text(text)
    sentence = refusal(path)
    assert expected in sentence
    assert str(path.parent) in sentence


def test_unreadable_files(tmp_path):
    """A wrong path, a folder or a binary file given as the config."""
    assert refusal(tmp_path / "none.yaml").endswith("none.yaml cannot be read: No such file or directory")
    assert refusal(tmp_path).endswith("cannot be read: Is a directory")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert refusal(tmp_path / "binary.yaml").endswith("binary.yaml is not a text file in UTF-8")


def test_mistake_in_a_base_names_the_base(tmp_path):
    """The user must look into the right file."""
    (tmp_path / "base.yaml").write_text("MODEL: {MASK_OFF: True}")
    (tmp_path / "model.yaml").write_text("_BASE_: base.yaml")
    assert refusal(tmp_path / "model.yaml").startswith(f"{tmp_path / 'base.yaml'}: unknown key MODEL.MASK_OFF; ")


def test_bad_overrides():
    """Mistakes on the command line say that they are there."""
    assert "must be KEY VALUE pairs, but 1 items were given" in refusal(None, ["MODEL.MASK_ON"])
    assert (
        refusal(None, ["MODEL.ROI_HEADS.NUM_CLASES", "5"])
        == "the model overrides: unknown key MODEL.ROI_HEADS.NUM_CLASES; the closest known key is "
        "MODEL.ROI_HEADS.NUM_CLASSES"
    )
    assert "takes values of type int, such as 80, not 'five'" in refusal(None, ["MODEL.ROI_HEADS.NUM_CLASSES", "five"])
    assert "unknown key _BASE_" in refusal(None, ["_BASE_", "a.yaml"])
    assert "the config text: unknown key A" in refusal(text="A: 1")


@pytest.mark.parametrize(
    ("key", "setting", "expected"),
    [
        ("MASK_SIZE", 128, "MASK_SIZE (128) and MODEL.ROI_MASK_HEAD.MASK_SIZE_ASSEMBLE (112) must be equal"),
        ("PATCH_SIZE", 9, "MASK_SIZE (112) must be a multiple of MODEL.ROI_MASK_HEAD.PATCH_SIZE (9)"),
        ("PATCH_SIZE", 0, "MASK_SIZE (112) must be a multiple of MODEL.ROI_MASK_HEAD.PATCH_SIZE (0)"),
        ("FINE_FEATURES_RESOLUTION", 40, "FINE_FEATURES_RESOLUTION (40) must be a multiple of the 14 patches"),
        ("DCT_VECTOR_DIM", 12545, "DCT_VECTOR_DIM must be in 1..12544"),
        ("PATCH_DCT_VECTOR_DIM", 0, "PATCH_DCT_VECTOR_DIM must be in 1..64"),
        ("CLS_AGNOSTIC_MASK", True, "CLS_AGNOSTIC_MASK must be False"),
        ("NUM_STAGE", 0, "NUM_STAGE must be 1 (DCT-Mask alone), 2 (one PatchDCT block) or more, not 0"),
        ("NUM_STAGE", 1, "one number for each of the 1 stages of MODEL.ROI_MASK_HEAD.NUM_STAGE, not [1.0, 1.0]"),
        (
            "NUM_STAGE",
            3,
            "must hold one number for each of the 3 stages of MODEL.ROI_MASK_HEAD.NUM_STAGE, not [1.0, 1.0]",
        ),
        ("MASK_LOSS_PARA_EACH_STAGE", [1.0, 1.0, 1.0], "one number for each of the 2 stages"),
        ("MASK_LOSS_PARA_EACH_STAGE", ["a", 1.0], "one number for each of the 2 stages"),
        ("PATCH_THRESHOLD", 1.5, "PATCH_THRESHOLD must be in 0..1, not 1.5"),
        ("DCT_LOSS_TYPE", "l3", "DCT_LOSS_TYPE must be one of l1, sl1, l2, not 'l3'"),
    ],
)
def test_contradictions(key, setting, expected):
    """Without the check these fail in the middle of a forward pass, or compute something else."""
    cfg = load_config(CONFIGS / "patchdct_r50_1x.yaml", [f"MODEL.ROI_MASK_HEAD.{key}", setting])
    with pytest.raises(ModelError, match=re.escape(expected)):
        check_config(cfg)


@pytest.mark.parametrize("name", ["patchdct_demo", "dctmask_demo", "maskrcnn_demo", "demo_detector", "patchdct_nuclei"])
def test_own_config(name):
    """A config of this project's own models that the checks refuse; DCT-Mask alone has one stage and one weight."""
    check_config(load_config(CONFIGS / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("roi_heads", "mask_head"),
    [
        ("StandardROIHeads", "MaskRCNNPatchDCTHead"),
        ("StandardROIHeads", "MaskRCNNPatchDCTHead_NSTAGE"),
        ("PatchDCTROIHeads", "MaskRCNNConvUpsampleHead"),
    ],
)
def test_heads_that_do_not_fit(roi_heads, mask_head):
    """ROI heads that call the mask head with too few or too many features would fail at the first image."""
    overrides = ["MODEL.ROI_HEADS.NAME", roi_heads, "MODEL.ROI_MASK_HEAD.NAME", mask_head]
    message = f"MODEL.ROI_HEADS.NAME {roi_heads} and MODEL.ROI_MASK_HEAD.NAME {mask_head} do not fit: "
    with pytest.raises(ModelError, match=re.escape(message)):
        check_config(load_config(CONFIGS / "patchdct_r50_1x.yaml", overrides))
    check_config(load_config(CONFIGS / "patchdct_r50_1x.yaml", [*overrides, "MODEL.MASK_ON", False]))


def test_old_name_is_checked_as_well():
    """Under its name of before February 2023 the head must not lose the checks of its settings."""
    old = ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNPatchDCTHead_NSTAGE"]
    check_config(load_config(CONFIGS / "patchdct_r50_1x.yaml", old))
    with pytest.raises(ModelError, match="CLS_AGNOSTIC_MASK must be False"):
        check_config(
            load_config(CONFIGS / "patchdct_r50_1x.yaml", [*old, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True])
        )


def test_plain_mask_rcnn_is_not_checked_as_patchdct():
    """The defaults contradict each other (mask size 128); other mask heads do not read them."""
    check_config(load_config())


def test_missing_detectron2_says_what_to_do():
    """Without detectron2 the user needs a command, not ModuleNotFoundError."""
    code = "import sys; sys.modules['detectron2'] = None\nimport patchdct.config"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"patchdct.errors.{MissingDetectron2Error.__name__}: detectron2 cannot be imported (")
    assert "make install" in last
