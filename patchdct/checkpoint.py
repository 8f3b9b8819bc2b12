"""Checkpoints: reading them without running what is in them, loading them into a model, and writing them whole."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import pickle
import re
import uuid
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor, nn

from patchdct import safe_pickle
from patchdct.errors import ModelError

#: How the names in a file relate to the model's: the same; without the leading modules ("res2.0.conv1.weight"); those
#: of Caffe2 ("res2_0_branch2a_w").
Naming: TypeAlias = Literal["exact", "suffix", "caffe2"]

#: Entries that follow from the config; other code, or older code, saves them too.
IGNORED = ("*dct_encoding.T", "*anchor_generator.cell_anchors.*", "pixel_mean", "pixel_std")

#: Tensors with a row for each class: of the box head, of PatchDCT's patches, of Mask R-CNN's masks.
PER_CLASS = (
    "roi_heads.box_predictor.*",
    "roi_heads.mask_head.predictor1.*",
    "roi_heads.mask_head.predictor_bfg.*",
    "roi_heads.mask_head.predictor.weight",
    "roi_heads.mask_head.predictor.bias",
)

# The first bytes of a file by torch.save: of a zip archive, and PyTorch's magic number before version 1.6.
_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")

# What unpickling raises for bytes that are damaged or something else altogether. RuntimeError includes RecursionError.
_DAMAGED = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(AssertionError, ImportError, ArithmeticError, MemoryError, zipfile.BadZipFile, NotImplementedError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint file.

    `state` maps names to tensors on the CPU. `categories` are the data set's (id, name) in the order of the model's
    classes, `config` is the model config as YAML, `provenance` says how the weights came about; None where the file
    does not say. `sha256` is that of the file.
    """

    path: Path
    state: Mapping[str, Tensor]
    naming: Naming
    categories: tuple[tuple[int, str], ...] | None
    config: str | None
    provenance: Mapping[str, object] | None
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a checkpoint fits a model of `total` tensors. `misshapen`: (name, shape in the file, shape in the model)."""

    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the file fits one of the model, and the reverse."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        """The counts and the first names, for a log or an error."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} of {self.total} tensors are missing ({_some(self.missing)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} are unexpected ({_some(self.unexpected)})")
        if self.misshapen:
            shapes = [f"{name} is {there} and should be {here}" for name, there, here in self.misshapen]
            parts.append(f"{len(self.misshapen)} have another shape ({_some(shapes)})")
        return ", ".join(parts) or f"all {self.total} tensors fit"


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a local checkpoint file, by its content and not by its name.

    Accepted: what `save_checkpoint` wrote; state dicts by torch.save, bare or under "model" beside other entries, as
    detectron2 trains them; pickles of NumPy arrays by name, bare or under "model" or "blobs", as in the model zoos of
    detectron2 and Detectron. Only tensors, arrays and plain data are read; nothing in the file can be run.

    Raises:
        ModelError: the file is missing, damaged, no checkpoint, or holds other objects.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            content, by_torch = _read(file, path)
    except OSError as error:
        raise ModelError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"checkpoint {path} holds an object of type {type(content).__name__}, not tensors by name")

    naming: Naming = "exact"
    if "model" in content:
        state = content["model"]
        if content.get("matching_heuristics"):
            naming = "caffe2" if content.get("__author__") == "Caffe2" else "suffix"
    elif by_torch:
        state = content
    else:
        state, naming = content.get("blobs", content), "caffe2"
    config, provenance = content.get("config"), content.get("provenance")
    return Checkpoint(
        path=path,
        state=_tensors(state, path),
        naming=naming,
        categories=_categories(content.get("categories"), path),
        config=config if isinstance(config, str) else None,
        provenance=provenance if isinstance(provenance, dict) else None,
        sha256=sha256,
    )


def load_weights(
    model: nn.Module, source: str | Path | Checkpoint, *, strict: bool = True, allow: Collection[str] = ()
) -> Fit:
    """Copy the tensors of a checkpoint into a model, converting their type to the model's.

    Args:
        model: left as it is where the checkpoint is refused.
        source: a local file (see `read_checkpoint`), or what was read from it.
        strict: every tensor of the model must be there, and no other. False loads those that fit: for a backbone, or
            for training from other classes. Then a file with none of the model's names is matched by the ends of the
            names, as detectron2 does for ImageNet backbones.
        allow: patterns (`roi_heads.box_predictor.*`) of names that need not fit even then.

    Returns:
        What did not fit, for the log.

    Raises:
        ModelError: the checkpoint cannot be read or does not fit; not strict: nothing in it fits.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    own = model.state_dict()
    state = _renamed(checkpoint, own, strict)
    shapes = {name: (tuple(tensor.shape), tuple(own[name].shape)) for name, tensor in state.items() if name in own}
    fitting = {name: state[name] for name, (there, here) in shapes.items() if there == here}

    optional = (*IGNORED, *allow)
    fit = Fit(
        total=len(own),
        missing=tuple(name for name in own if name not in state and not _matches(name, optional)),
        unexpected=tuple(name for name in state if name not in own and not _matches(name, optional)),
        misshapen=tuple(
            (name, there, here)
            for name, (there, here) in shapes.items()
            if there != here and not _matches(name, optional)
        ),
    )
    if not fitting:
        raise ModelError(f"checkpoint {checkpoint.path} does not fit the model at all: {fit}")
    if strict and not fit.complete:
        raise ModelError(f"checkpoint {checkpoint.path} does not fit the model: {fit}")
    result = model.load_state_dict(fitting, strict=False)
    # Layers may fill in for what old files lack: FrozenBatchNorm2d has mean 0 and variance 1 without statistics.
    return replace(fit, missing=tuple(name for name in fit.missing if name in result.missing_keys))


def save_checkpoint(
    path: str | Path,
    model_state: Mapping[str, Tensor],
    *,
    categories: Sequence[tuple[int, str]] | None,
    config_text: str | None,
    provenance: Mapping[str, object] | None,
    half: bool = False,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: where; its folder is made, and a file that is there is replaced.
        model_state: the model's `state_dict()`.
        categories: the data set's (id, name) in the order of the model's classes.
        config_text: the model config, `cfg.dump()`.
        provenance: plain data on how the weights came about.
        half: store floats as float16, but for tensors with values beyond its range (65504). Integers stay as they are.

    Raises:
        ModelError: the file cannot be written.
    """
    path = Path(path)
    content = {
        "model": {name: _stored(tensor, half) for name, tensor in model_state.items()},
        "categories": None if categories is None else [[int(number), str(name)] for number, name in categories],
        "config": config_text,
        "provenance": None if provenance is None else dict(provenance),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(content, path)
    except (OSError, RuntimeError) as error:
        # torch.save closes its archive on the way out, and then complains about that instead of, say, a full disk.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise ModelError(f"checkpoint {path} cannot be written: {getattr(cause, 'strerror', cause)}") from error


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write what a training goes on from (tensors and plain data), whole or not at all.

    Raises:
        ModelError: the file cannot be written.
    """
    try:
        _write(dict(state), path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise ModelError(f"{path} cannot be written: {getattr(cause, 'strerror', cause)}") from error


def read_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, tensors on the CPU.

    Raises:
        ModelError: the file is missing, damaged, or holds anything but tensors and plain data.
    """
    try:
        with path.open("rb") as file:
            state, _ = _read(file, path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds an object of type {type(state).__name__}, not the state of a training")
    return state


def of_other_classes(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without the tensors that have a row for each class, as those of other classes would mislead."""
    kept = {name: tensor for name, tensor in checkpoint.state.items() if not _matches(name, PER_CLASS)}
    return replace(checkpoint, state=kept)


def _write(content: object, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: BinaryIO, path: Path) -> tuple[object, bool]:
    """The content of the file, and whether torch.save wrote it."""
    file.seek(0)
    head = file.read(max(map(len, _TORCH)))
    file.seek(0)
    if not head:
        raise ModelError(f"checkpoint {path} is empty")
    by_torch = head.startswith(_TORCH)
    try:
        if by_torch:
            _check_stored(file)
            return torch.load(file, map_location="cpu", weights_only=True), True
        return safe_pickle.load(file), False
    except _DAMAGED as error:
        forbidden = str(error) if isinstance(error, safe_pickle.ForbiddenError) else ""
        if named := re.search(r"GLOBAL (\S+)", str(error)):  # in the words of torch.load
            forbidden = f"it asks for {named[1]} when it is read"
        if forbidden:
            accepted = "tensors, arrays of numbers and plain data"
            raise ModelError(f"checkpoint {path} is refused: {forbidden}; accepted are {accepted}") from error
        if by_torch or head.startswith(b"\x80"):
            raise ModelError(f"checkpoint {path} is truncated or damaged") from error
        raise ModelError(
            f"{path} is no checkpoint (a file by torch.save, or a pickle of arrays by name): it begins with {head!r}"
        ) from error


def _check_stored(file: BinaryIO) -> None:
    """Refuse an archive with compressed entries, which torch.save never writes: a megabyte may unpack to gigabytes."""
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise safe_pickle.ForbiddenError("its archive is compressed, as torch.save does not write it")
    file.seek(0)


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not state:
        raise ModelError(f"checkpoint {path} holds no tensors by name")
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | np.ndarray):
            raise ModelError(f"checkpoint {path} holds {name!r} of type {type(value).__name__}, not a tensor")
        tensors[name] = value if isinstance(value, Tensor) else torch.from_numpy(value)
    if all(name.startswith("module.") for name in tensors):  # saved from a DistributedDataParallel
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _categories(entries: object, path: Path) -> tuple[tuple[int, str], ...] | None:
    if entries is None:
        return None
    categories = []
    for entry in entries if isinstance(entries, list | tuple) else [entries]:
        match entry:
            case [int(number), str(name)]:
                categories.append((number, name))
            case _:
                raise ModelError(
                    f"checkpoint {path} has categories that are no pairs of id and name, such as {entry!r}"
                )
    return tuple(categories)


def _renamed(checkpoint: Checkpoint, own: Mapping[str, Tensor], strict: bool) -> Mapping[str, Tensor]:
    """The checkpoint's tensors by the model's names, as far as detectron2's heuristics find them."""
    state, naming = checkpoint.state, checkpoint.naming
    if naming == "exact" and not strict and state.keys().isdisjoint(own):
        naming = "suffix"
    if naming == "exact":
        return state
    if naming == "caffe2":
        state = {name: tensor for name, tensor in state.items() if not name.endswith("_momentum")}
    try:
        renamed: dict[str, Tensor] = align_and_update_state_dicts(dict(own), dict(state), naming == "caffe2")
    except (ValueError, AssertionError) as error:
        raise ModelError(f"the names in checkpoint {checkpoint.path} match the model in more than one way") from error
    return renamed


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    fits = half and tensor.is_floating_point() and (not tensor.numel() or tensor.abs().amax() <= 65504)
    # The clone drops what else lies in the storage of a view.
    return tensor.to(torch.float16) if fits else tensor.clone(memory_format=torch.contiguous_format)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Sequence[Any], count: int = 3) -> str:
    return ", ".join([*map(str, names[:count]), *(["..."] if len(names) > count else [])])
