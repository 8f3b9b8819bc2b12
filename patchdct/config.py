"""Model configs: the keys that PatchDCT and Swin-B add to detectron2's, and reading them from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from patchdct.errors import MissingDetectron2Error, ModelError

try:
    from detectron2.config import CfgNode, get_cfg
except ImportError as error:
    raise MissingDetectron2Error(
        f"detectron2 cannot be imported ({error}); install the wheel with `make install`, or build it from source with "
        "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2`"
    ) from error

BASE_KEY = "_BASE_"
#: The names that the mask head is registered under, and the ROI heads that it works in.
MASK_HEADS, ROI_HEADS = ("MaskRCNNPatchDCTHead", "MaskRCNNPatchDCTHead_NSTAGE"), "PatchDCTROIHeads"
DCT_LOSS_TYPES = ("l1", "sl1", "l2")


class Setting(NamedTuple):
    """A value for one key, and the file it comes from."""

    source: str
    key: str
    value: Any


def add_patchdct_config(cfg: CfgNode) -> None:
    """Add the keys of the PatchDCT mask head under `MODEL.ROI_MASK_HEAD`, with the reference's names and defaults.

    The default `MASK_SIZE` 128 does not fit the other defaults; every published config sets 112 (see `check_config`).
    `IN_FEATURES` is there for the authors' configs only: the mask pooler reads `ROI_HEADS.IN_FEATURES`.
    """
    head = cfg.MODEL.ROI_MASK_HEAD
    head.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    head.FINE_FEATURES = ["p2"]
    head.FINE_FEATURES_RESOLUTION = 42
    head.DCT_VECTOR_DIM = 300
    head.MASK_SIZE = 128
    head.MASK_SIZE_ASSEMBLE = 112
    head.PATCH_SIZE = 8
    head.PATCH_DCT_VECTOR_DIM = 6
    head.HIDDEN_FEATURES = 1024
    head.PATCH_THRESHOLD = 0.30
    head.NUM_STAGE = 2
    head.MASK_LOSS_PARA = 1.0
    head.MASK_LOSS_PARA_EACH_STAGE = [1.0, 1.0]
    head.DCT_LOSS_TYPE = "l1"
    head.EVAL_GT = False


def add_swinb_config(cfg: CfgNode) -> None:
    """Add the keys of the Swin-B backbone under `MODEL.SWINT`, and `SOLVER.OPTIMIZER` ("AdamW" or "SGD").

    As in the reference this changes a default of detectron2: `MODEL.BACKBONE.FREEZE_AT` becomes -1 (nothing frozen).
    """
    cfg.MODEL.SWINT = CfgNode()
    cfg.MODEL.SWINT.EMBED_DIM = 128
    cfg.MODEL.SWINT.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]
    cfg.MODEL.SWINT.DEPTHS = [2, 2, 18, 2]
    cfg.MODEL.SWINT.NUM_HEADS = [4, 8, 16, 32]
    cfg.MODEL.SWINT.WINDOW_SIZE = 7
    cfg.MODEL.SWINT.MLP_RATIO = 4
    cfg.MODEL.SWINT.DROP_PATH_RATE = 0.2
    cfg.MODEL.SWINT.APE = False
    cfg.MODEL.BACKBONE.FREEZE_AT = -1
    cfg.MODEL.FPN.TOP_LEVELS = 2
    cfg.SOLVER.OPTIMIZER = "AdamW"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), *, text: str | None = None) -> CfgNode:
    """Read a model config over the defaults of detectron2, PatchDCT and Swin-B, and freeze it.

    The defaults that `add_swinb_config` sets (nothing frozen, AdamW) hold for Swin backbones only; any other one has
    detectron2's (`FREEZE_AT` 2) and SGD.

    Args:
        path: a local YAML file; `_BASE_` in it names one or more files that it builds on, relative to it.
        overrides: KEY VALUE pairs as one flat list, applied last.
        text: the YAML itself instead of a file, without `_BASE_`, such as the config stored in a checkpoint.

    Raises:
        ModelError: a file that cannot be read, bad YAML, an unknown key, a value of the wrong type, an override
            without a value.
    """
    assert path is None or text is None, "a config comes from a file or from a text"
    if len(overrides) % 2:
        raise ModelError(f"model overrides must be KEY VALUE pairs, but {len(overrides)} items were given: {overrides}")
    settings: list[Setting] = []
    if path is not None:
        settings += _read_file(Path(path))
    if text is not None:
        settings += _flatten(_parse(text, "the config text"), "the config text")
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    settings += [Setting("the model overrides", str(key), value) for key, value in pairs]

    cfg = get_cfg()
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    add_patchdct_config(cfg)
    add_swinb_config(cfg)
    backbones = [setting.value for setting in settings if setting.key == "MODEL.BACKBONE.NAME"]
    if not (backbones and "swin" in str(backbones[-1])):
        cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
        cfg.SOLVER.OPTIMIZER = "SGD"
    known = dict(_leaves(cfg))
    for setting in settings:
        _apply(setting, cfg, known)
    cfg.freeze()
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Refuse settings of the PatchDCT head that contradict each other or that it does not support.

    Configs with another mask head pass: detectron2 checks them.

    Raises:
        ModelError: the first contradiction, in one sentence.
    """
    head, heads = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS.NAME
    if not cfg.MODEL.MASK_ON:
        return
    if (head.NAME in MASK_HEADS) != (heads == ROI_HEADS):
        raise ModelError(
            f"MODEL.ROI_HEADS.NAME {heads} and MODEL.ROI_MASK_HEAD.NAME {head.NAME} do not fit: {ROI_HEADS} and "
            f"{MASK_HEADS[0]} go together, and with no others"
        )
    if head.NAME not in MASK_HEADS:
        return
    where = "MODEL.ROI_MASK_HEAD."
    if head.MASK_SIZE != head.MASK_SIZE_ASSEMBLE:
        raise ModelError(
            f"{where}MASK_SIZE ({head.MASK_SIZE}) and {where}MASK_SIZE_ASSEMBLE ({head.MASK_SIZE_ASSEMBLE}) must be "
            "equal, 112 in the published configs"
        )
    if head.PATCH_SIZE < 1 or head.MASK_SIZE < head.PATCH_SIZE or head.MASK_SIZE % head.PATCH_SIZE:
        raise ModelError(
            f"{where}MASK_SIZE ({head.MASK_SIZE}) must be a multiple of {where}PATCH_SIZE ({head.PATCH_SIZE})"
        )
    grid, resolution = head.MASK_SIZE // head.PATCH_SIZE, head.FINE_FEATURES_RESOLUTION
    if resolution < grid or resolution % grid:
        raise ModelError(
            f"{where}FINE_FEATURES_RESOLUTION ({resolution}) must be a multiple of the {grid} patches in a row of the "
            f"mask ({where}MASK_SIZE / {where}PATCH_SIZE)"
        )
    for vector, size in (("DCT_VECTOR_DIM", "MASK_SIZE"), ("PATCH_DCT_VECTOR_DIM", "PATCH_SIZE")):
        if not 1 <= head[vector] <= head[size] ** 2:
            raise ModelError(
                f"{where}{vector} must be in 1..{head[size] ** 2} ({where}{size} squared), not {head[vector]}"
            )
    if head.CLS_AGNOSTIC_MASK:
        raise ModelError(f"{where}CLS_AGNOSTIC_MASK must be False: the PatchDCT head predicts a mask for each class")
    if head.NUM_STAGE < 1:
        raise ModelError(
            f"{where}NUM_STAGE must be 1 (DCT-Mask alone), 2 (one PatchDCT block) or more, not {head.NUM_STAGE}"
        )
    weights = head.MASK_LOSS_PARA_EACH_STAGE
    if len(weights) != head.NUM_STAGE or not all(isinstance(weight, int | float) for weight in weights):
        raise ModelError(
            f"{where}MASK_LOSS_PARA_EACH_STAGE must hold one number for each of the {head.NUM_STAGE} stages of "
            f"{where}NUM_STAGE, not {list(weights)}"
        )
    if not 0 <= head.PATCH_THRESHOLD <= 1:
        raise ModelError(f"{where}PATCH_THRESHOLD must be in 0..1, not {head.PATCH_THRESHOLD}")
    if head.DCT_LOSS_TYPE not in DCT_LOSS_TYPES:
        raise ModelError(f"{where}DCT_LOSS_TYPE must be one of {', '.join(DCT_LOSS_TYPES)}, not {head.DCT_LOSS_TYPE!r}")


def _read_file(path: Path, above: tuple[Path, ...] = ()) -> list[Setting]:
    """All settings of a config file, those of its bases first."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"model config {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"model config {path} is not a text file in UTF-8") from error
    values = dict(_parse(text, str(path)))
    bases = values.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and "://" not in base for base in bases):
        raise ModelError(f"{path}: {BASE_KEY} must be a local path or a list of local paths, not {bases!r}")
    chain = (*above, path.resolve())
    settings: list[Setting] = []
    for base in (path.parent / Path(base).expanduser() for base in bases):
        if base.resolve() in chain:
            raise ModelError(f"{path}: {BASE_KEY} leads in a circle through {base}")
        settings += _read_file(base, chain)
    return [*settings, *_flatten(values, str(path))]


def _parse(text: str, source: str) -> Mapping[Any, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ModelError(f"{source} is not valid YAML{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ModelError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ModelError(f"{source} must hold KEY: value settings, not a {type(values).__name__}")
    return values


def _flatten(values: Mapping[Any, Any], source: str, prefix: str = "") -> Iterator[Setting]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, source, f"{prefix}{key}.")
        else:
            yield Setting(source, f"{prefix}{key}", value)


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _apply(setting: Setting, cfg: CfgNode, known: Mapping[str, Any]) -> None:
    """Set one key by the rules of yacs, which reads a string as a Python literal if it is one ("1e-4", "(640, 800)").

    Two rules differ: an int is accepted for a float, and None only where the default is None (yacs would take it
    anywhere and leave the failure to whoever reads the key).
    """
    source, key, value = setting
    if key not in known:
        if any(name.startswith(f"{key}.") for name in known):
            raise ModelError(f"{source}: {key} is a section with keys of its own and takes no value, but got {value!r}")
        closest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise ModelError(f"{source}: unknown key {key}; the closest known key is {closest}")
    default = known[key]
    literal = CfgNode._decode_cfg_value(value)
    if isinstance(default, float) and type(literal) is int:
        value = float(literal)
    mismatch = ModelError(
        f"{source}: {key} takes values of type {type(default).__name__}, such as {default!r}, not {value!r}"
    )
    if literal is None and default is not None:
        raise mismatch
    try:
        cfg.merge_from_list([key, value])
    except ValueError as error:
        raise mismatch from error
    if key == "VERSION" and value != default:
        raise ModelError(f"{source}: VERSION must be {default}, not {cfg.VERSION}")
