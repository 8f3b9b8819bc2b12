"""Checkpoints: every accepted form loads, everything else is one sentence, and nothing in a file is ever run."""

from __future__ import annotations

import contextlib
import os
import pickle  # noqa: TID251 - writes what model zoos publish
import re
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from patchdct import safe_pickle
from patchdct.checkpoint import load_weights, read_checkpoint, save_checkpoint
from patchdct.errors import ModelError


class Small(nn.Module):
    """A model with each kind of tensor: floats, a running statistic and an integer."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.score = nn.Linear(4, classes)


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def refusal(path: Path, model: nn.Module | None = None, **kwargs) -> str:
    """The sentence that reading (or loading into a model) is refused with."""
    with pytest.raises(ModelError) as caught:
        load_weights(model, path, **kwargs) if model else read_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def save(path: Path, state, **kwargs) -> Path:
    content = {"categories": None, "config_text": None, "provenance": None} | kwargs
    save_checkpoint(path, state, **content)
    return path


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


# Reading and loading


def test_round_trip(tmp_path):
    """What training saves is what labeling gets, with the names of its classes."""
    model, other = Small(), Small()
    save_checkpoint(
        tmp_path / "run" / "m.pth",
        model.state_dict(),
        categories=((3, "cat"), (7, "dog")),
        config_text="VERSION: 2\n",
        provenance={"steps": 5, "loss": 0.25, "data": ["a", "b"]},
    )
    checkpoint = read_checkpoint(tmp_path / "run" / "m.pth")
    assert checkpoint.categories == ((3, "cat"), (7, "dog"))
    assert checkpoint.config == "VERSION: 2\n"
    assert checkpoint.provenance == {"steps": 5, "loss": 0.25, "data": ["a", "b"]}
    assert re.fullmatch("[0-9a-f]{64}", checkpoint.sha256)
    assert load_weights(other, checkpoint).complete
    assert equal(model.state_dict(), other.state_dict())


def test_half_precision(tmp_path):
    """A float16 file loads into a float32 model; what float16 cannot hold, and counts, keep their type."""
    model, other = Small(), Small()
    model.norm.num_batches_tracked += 70001
    model.norm.running_var += 1e6
    stored = read_checkpoint(save(tmp_path / "m.pth", model.state_dict(), half=True)).state
    assert stored["conv.weight"].dtype == torch.float16
    assert stored["norm.running_var"].dtype == torch.float32
    assert stored["norm.num_batches_tracked"].item() == 70001
    load_weights(other, tmp_path / "m.pth")
    for name, tensor in other.state_dict().items():
        assert tensor.dtype == model.state_dict()[name].dtype
        assert torch.allclose(tensor.double(), model.state_dict()[name].double(), rtol=1e-3, atol=1e-4)


def test_stored_size_is_that_of_the_tensors(tmp_path):
    """A slice must not drag the whole storage behind it into the file."""
    path = save(tmp_path / "m.pth", {"a": torch.zeros(1_000_000)[:10]})
    assert path.stat().st_size < 10_000


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("form", ["bare", "model", "training", "parallel", "ordered"])
def test_files_of_torch(tmp_path, form, legacy):
    """Files of detectron2's trainer, of plain PyTorch and of old PyTorch all load strictly."""
    model, other = Small(), Small()
    state = model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    contents = {
        "bare": dict(state),
        "ordered": state,
        "model": {"model": state, "__author__": "somebody"},
        "training": {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "scheduler": {"last_epoch": 3},
            "iteration": 3,
        },
        "parallel": {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    }
    torch.save(contents[form], tmp_path / "m", _use_new_zipfile_serialization=not legacy)
    assert load_weights(other, tmp_path / "m").complete
    assert equal(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays(tmp_path, protocol):
    """Files of detectron2's model zoo, by any version of pickle."""
    model, other = Small(), Small()
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": arrays(model), "__author__": "zoo"}, protocol))
    assert load_weights(other, tmp_path / "m.pkl").complete
    assert equal(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_of_all_kinds(tmp_path, protocol):
    """Layouts, byte orders and types must come back with their values, not as garbage."""
    values = np.arange(-6, 6).reshape(3, 4)
    expected = {
        **{code: values.astype(code) for code in ("b1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")},
        "u1": np.arange(5, dtype="u1"),
        "big endian": values.astype(">f4"),
        "Fortran": np.asfortranarray(values.astype("f4")),
        "strided": values.astype("f4")[::2, ::-1],
        "empty": np.zeros((0, 3), "f4"),
        "0-d": np.array(1.5),
        "scalar": np.float32(2.5),
    }
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(OrderedDict(model=OrderedDict(expected)), protocol))
    state = read_checkpoint(tmp_path / "m.pkl").state
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].shape == array.shape
        assert state[name].numpy().tolist() == array.tolist()
    state["Fortran"].add_(1)  # owns writable memory


def test_pickle_of_python_2(tmp_path):
    """ImageNet backbones were pickled by Python 2: protocol 2, byte strings for names and data."""
    data = np.arange(6, dtype="<f4").tobytes()
    program = (
        b"\x80\x02}U\x08conv1_bnU\x07ignoredsU\x0cres_conv1_bncnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(data)]) + data + b"tbs."
    ).replace(b"U\x08conv1_bnU\x07ignoreds", b"")
    (tmp_path / "m.pkl").write_bytes(program)
    assert read_checkpoint(tmp_path / "m.pkl").state["res_conv1_bn"].tolist() == [[0, 1, 2], [3, 4, 5]]


def caffe2_name(name: str) -> str:
    """The name in an MSRA or FAIR file of a tensor of detectron2's ResNet."""
    name = name.replace("stem.conv1.norm.", "res.conv1.norm.").replace("stem.", "")
    name = name.replace("shortcut.", "branch1.")
    for i, letter in enumerate("abc", start=1):
        name = re.sub(rf"^(res\d\.\d+)\.conv{i}\.", rf"\1.branch2{letter}.", name)
    name = name.replace(".norm.weight", ".bn.s").replace(".norm.bias", ".bn.b").replace(".weight", ".w")
    return name.replace(".", "_")


@pytest.fixture(scope="module")
def resnets() -> list[nn.Module]:
    """Two R50-FPN backbones with other weights, thin ones."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = cfg.MODEL.FPN.OUT_CHANNELS = 8
    return [nn.ModuleDict({"backbone": build_backbone(cfg)}) for _ in range(2)]


@pytest.mark.parametrize("form", ["msra", "detectron", "suffix", "suffix.pth", "unmarked.pth"])
def test_imagenet_backbones(tmp_path, resnets, form):
    """ImageNet weights of the configs load into the backbone from their own names; the FPN starts anew."""
    source, target = resnets
    prefix = "backbone.bottom_up."
    statistics = ("running_mean", "running_var")  # MSRA folded them into weight and bias
    short = {
        name.removeprefix(prefix): torch.rand_like(tensor)
        for name, tensor in source.state_dict().items()
        if name.startswith(prefix) and not name.endswith(statistics)
    }
    caffe2 = {caffe2_name(name): tensor.numpy() for name, tensor in short.items()}
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch1_w", "res5_2_branch2c_bn_b"} <= caffe2.keys()
    path = tmp_path / form
    match form:
        case "msra":
            path.write_bytes(pickle.dumps(caffe2 | {"fc1000_w": np.zeros((10, 8), "f4")}, 2))
        case "detectron":
            caffe2["conv1_w_momentum"] = np.zeros(3, "f4")
            path.write_bytes(pickle.dumps({"blobs": caffe2, "cfg": "MODEL: {}"}, 2))
        case "suffix":
            content = {"model": {name: tensor.numpy() for name, tensor in short.items()}, "matching_heuristics": True}
            path.write_bytes(pickle.dumps(content))
        case "suffix.pth":
            torch.save({"model": short, "matching_heuristics": True}, path)
        case "unmarked.pth":
            torch.save({"model": short}, path)

    fit = load_weights(target, path, strict=False)
    loaded = target.state_dict()
    for name, tensor in short.items():
        assert torch.equal(loaded[prefix + name], tensor), name
    assert {name.split(".")[1] for name in fit.missing} == {
        f"fpn_{k}{i}" for k in ("lateral", "output") for i in range(2, 6)
    }
    assert fit.unexpected == (("fc1000.weight",) if form == "msra" else ())
    assert fit.misshapen == ()
    assert "does not fit the model" in refusal(path, target)


def test_entries_of_the_reference_that_follow_from_the_config(tmp_path):
    """Published checkpoints may carry DCT tables and pixel means, which are no parameters here."""
    extra = {
        "roi_heads.mask_head.dct_encoding.T": torch.eye(2),
        "roi_heads.mask_head.patch_dct_encoding.T": torch.eye(2),
    }
    extra |= {"pixel_mean": torch.zeros(3), "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
    model = Small()
    assert load_weights(model, save(tmp_path / "m.pth", model.state_dict() | extra)).complete


# What does not fit


def test_misfits_are_named_and_nothing_is_loaded(tmp_path):
    """One sentence says what is missing, unexpected and misshapen, and the model stays as it was."""
    model = Small(classes=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = Small(classes=3).state_dict() | {f"extra.{i}": torch.zeros(1) for i in range(5)}
    del state["conv.bias"]
    assert refusal(save(tmp_path / "m.pth", state), model) == (
        f"checkpoint {tmp_path / 'm.pth'} does not fit the model: 1 of 9 tensors are missing (conv.bias), "
        "5 are unexpected (extra.0, extra.1, extra.2, ...), 2 have another shape "
        "(score.weight is (3, 4) and should be (5, 4), score.bias is (3,) and should be (5,))"
    )
    assert equal(model.state_dict(), before)


def test_not_strict_loads_what_fits(tmp_path):
    """Training from other classes keeps the rest, and says what it could not use."""
    source, model = Small(classes=3), Small(classes=5)
    fit = load_weights(model, save(tmp_path / "m.pth", source.state_dict()), strict=False)
    assert torch.equal(model.conv.weight, source.conv.weight)
    assert [name for name, *_ in fit.misshapen] == ["score.weight", "score.bias"]
    assert (fit.missing, fit.unexpected, fit.complete) == ((), (), False)
    assert load_weights(model, tmp_path / "m.pth", allow=["score.*"]).complete


def test_weights_of_another_model(tmp_path):
    """Weights of which nothing fits would leave the model at random, even where not all has to fit."""
    path = save(tmp_path / "m.pth", nn.Linear(2, 2).state_dict())
    assert "does not fit the model at all: 9 of 9 tensors are missing" in refusal(path, Small(), strict=False)


# What is no checkpoint


@pytest.mark.parametrize("name", ["m.pkl", "m.pth"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_that_runs_a_command(tmp_path, name, protocol):
    """Weights from the internet must not be able to run code, under any name."""
    trace, path = tmp_path / "trace", tmp_path / name
    path.write_bytes(pickle.dumps({"model": {"a": np.zeros(3)}, "b": Attack(trace)}, protocol))
    assert f"refused: it asks for {os.system.__module__}.system when it is read; accepted are tensors" in refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["m.pkl", "m.pth"])
def test_torch_file_that_runs_a_command(tmp_path, name, legacy):
    """The same for files by torch.save."""
    trace, path = tmp_path / "trace", tmp_path / name
    torch.save({"model": Attack(trace)}, path, _use_new_zipfile_serialization=not legacy)
    assert f"refused: it asks for {os.system.__module__}.system when it is read" in refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "named",
    [
        "builtins\neval",
        "builtins\ngetattr",
        "numpy\nload",
        "numpy.core.multiarray\nfromfile",
        "torch\nload",
        "os\nsystem",
    ],
)
def test_nothing_else_can_be_named(tmp_path, named):
    """Harmless-looking modules hold functions that are not."""
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02}U\x01ac" + named.encode() + b"\ns.")
    assert f"it asks for {named.replace(chr(10), '.')} when it is read" in refusal(tmp_path / "m.pkl")


def test_arrays_of_objects(tmp_path):
    """Arrays of Python objects or of structures are not weights."""
    for array, code in ((np.array([{}], dtype=object), "O8"), (np.zeros(2, "f4,f4"), "V8"), (np.array(["a"]), "U1")):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": {"a": array}}))
        assert f"refused: it holds an array of type '{code}'" in refusal(tmp_path / "m.pkl")


def test_files_that_are_no_checkpoints(tmp_path):
    """A wrong path, a failed download or another file of the project."""

    def sentence(data: bytes, name: str = "m.pth") -> str:
        (tmp_path / name).write_bytes(data)
        return refusal(tmp_path / name)

    assert refusal(tmp_path / "none.pth").endswith("none.pth cannot be read: No such file or directory")
    assert refusal(tmp_path).endswith("cannot be read: Is a directory")
    assert sentence(b"").endswith("m.pth is empty")
    for name in ("m.pth", "m.pkl"):
        page = sentence(b"<!DOCTYPE html><html><title>404</title></html>", name)
        assert "is no checkpoint (a file by torch.save, or a pickle of arrays by name): it begins with b'<!DOC" in page
    assert "it begins with b'version https:/'" in sentence(b"version https://git-lfs.github.com/spec/v1\n")
    assert "it begins with b'\\x89PNG\\r\\n" in sentence(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert sentence(pickle.dumps([1, 2])).endswith("holds an object of type list, not tensors by name")
    assert sentence(pickle.dumps({})).endswith("holds no tensors by name")
    assert sentence(pickle.dumps({"model": 5})).endswith("holds no tensors by name")
    assert sentence(pickle.dumps({"blobs": 5})).endswith("holds no tensors by name")
    assert sentence(pickle.dumps({"model": {"a": 5}})).endswith("holds 'a' of type int, not a tensor")
    assert sentence(pickle.dumps({"model": {5: np.zeros(3)}})).endswith("holds 5 of type ndarray, not a tensor")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("word/document.xml", "text")
    assert refusal(tmp_path / "m.zip").endswith("m.zip is truncated or damaged")
    torch.save({"model": {"a": torch.zeros(3)}, "categories": ["cat"]}, tmp_path / "m.pth")
    assert refusal(tmp_path / "m.pth").endswith("has categories that are no pairs of id and name, such as 'cat'")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_truncated_at_any_place(tmp_path, form):
    """An interrupted copy gives a sentence wherever it stopped."""
    path = tmp_path / "m"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": arrays(Small())}))
    else:
        torch.save({"model": Small().state_dict()}, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for end in (1, 3, 20, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        refusal(path)


WHOLE = pickle.dumps({"model": {"a": np.arange(6, dtype="f4").reshape(2, 3)}}, 2)


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=4))
def test_damaged_bytes_never_raise_anything_else(tmp_path_factory, position, replacement):
    """A flipped byte gives the sentence or an array, never a traceback or a crash."""
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(WHOLE[:position] + replacement + WHOLE[position + len(replacement) :])
    with contextlib.suppress(ModelError):
        read_checkpoint(path)


def test_container_that_holds_itself(tmp_path):
    """A dict within itself must not exhaust the stack of the process."""
    knot: dict[str, object] = {}
    knot["model"] = knot
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(knot))
    assert refusal(tmp_path / "m.pkl").endswith("is truncated or damaged")


def test_stand_ins_read_only_bytes_that_are_there(tmp_path):
    """A shape larger than its data must not make an array of whatever lies behind in memory."""
    for shape in ((100,), (2, 4)):
        state = (1, shape, np.dtype("f4"), False, bytes(24))

        class Lying:
            def __reduce__(self, state=state):
                return np.zeros(0).__reduce__()[0], np.zeros(0).__reduce__()[1], state

        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": {"a": Lying()}}))
        assert refusal(tmp_path / "m.pkl").endswith("is truncated or damaged")


def test_safe_pickle_reads_plain_data(tmp_path):
    """Model zoos put strings, numbers and lists beside the arrays."""
    plain = {"a": [1, 2.5, None, True, "ü", b"x"], "b": (1,), "c": {"d": {1, 2}}}
    (tmp_path / "m").write_bytes(pickle.dumps(plain, 4))
    with (tmp_path / "m").open("rb") as file:
        assert safe_pickle.load(file) == plain


# Writing


def test_failed_write_leaves_the_old_file(tmp_path):
    """A full disk in the middle of a save must not cost the checkpoint that was there."""
    path = save(tmp_path / "m.pth", {"a": torch.ones(3)})
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # further writes fail, as on a full disk
    try:
        with pytest.raises(ModelError, match=re.escape(f"checkpoint {path} cannot be written: File too large")):
            save(path, {"a": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_nothing(tmp_path):
    """A save that ends early must not leave a file that looks like a checkpoint."""
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save(tmp_path / "m.pth", {"a": torch.ones(3)}, provenance={"function": lambda: None})
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place(tmp_path):
    """A path through a file is refused in one sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"file/m.pth cannot be written: "):
        save(tmp_path / "file" / "m.pth", {"a": torch.ones(3)})
