"""Labelers, weights and their settings that cannot be used, and files that would harm whoever read them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import label
from patchdct.checkpoint import save_checkpoint
from pipeline.config import LabelerConfig
from pipeline.errors import UserError
from pipeline.labelers import build
from pipeline.store import Store
from tests.patchdct import small
from tests.refusals import NO_SUCH_FILE, Refused, start, told_by_ray, tree


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["labeler.name=maskrcnn"], "labeler.name is 'maskrcnn'; accepted are patchdct and module:Class"),
        ([], "labeler.weights is missing; give the path or URI of a checkpoint"),
        (["labeler.weights=no.pth"], f"labeler.weights: no.pth: {NO_SUCH_FILE}"),
        (["labeler.weights={tmp}/in"], "labeler.weights: {tmp}/in is a directory, not a file"),
        (["labeler.weights={tmp}/in/0.tar", "labeler.config=no.yaml"], f"labeler.config: no.yaml: {NO_SUCH_FILE}"),
        (
            ["labeler.weights={tmp}/in/0.tar", "labeler.categories=no.txt"],
            f"labeler.categories: no.txt: {NO_SUCH_FILE}",
        ),
    ],
)
def test_a_labeler_that_is_not_there(
    refused: Refused, config: Path, tmp_path: Path, settings: list[str], sentence: str
) -> None:
    """A name with a typing error is told at once, not after Ray, torch and a worker have started."""
    settings = ["labeler.name=patchdct", *(one.format(tmp=tmp_path) for one in settings)]
    assert refused(label.main, config, *settings) == sentence.format(tmp=tmp_path)
    assert tree(tmp_path / "out") == set()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small model of 6 classes."""
    cfg = small.config()
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    state = small.model(cfg).state_dict()
    names = [(number, f"class {number}") for number in range(1, 7)]
    save_checkpoint(path, state, categories=names, config_text=cfg.dump(), provenance=None)
    return path


PICKLE = b"cos\nmkdir\n(S'pwned'\ntR."
NO_CHECKPOINT = (
    "labeler.weights: {path} is no checkpoint (a file by torch.save, or a pickle of arrays by name): it begins with "
)
FORBIDDEN = "is refused: it asks for {} when it is read; accepted are tensors, arrays of numbers and plain data"


def with_pickle(checkpoint: bytes, pickle: bytes) -> bytes:
    """A file by torch.save with another pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle if name.endswith("data.pkl") else old.read(name))
    return buffer.getvalue()


WEIGHTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda _: b"hello world\n", NO_CHECKPOINT + "b'hello world\\n'"),
    "a web page": (lambda _: b"<!DOCTYPE html><title>404</title>", NO_CHECKPOINT + "b'<!DOCTYPE html>'"),
    "truncated": (lambda good: good[: len(good) // 2], "labeler.weights: checkpoint {path} is truncated or damaged"),
    "empty": (lambda _: b"", "labeler.weights: checkpoint {path} is empty"),
    "a pickle that runs": (lambda _: PICKLE, "labeler.weights: checkpoint {path} " + FORBIDDEN.format("os.mkdir")),
    "a checkpoint that runs": (
        lambda good: with_pickle(good, b"\x80\x02" + PICKLE),
        "labeler.weights: checkpoint {path} " + FORBIDDEN.format("os.mkdir"),
    ),
}


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_no_checkpoint(weights: Path, tmp_path: Path, case: str) -> None:
    """A failed download is told as such, and nothing in a file from elsewhere is run."""
    make, sentence = WEIGHTS[case]
    path = tmp_path / "model.pth"
    path.write_bytes(make(weights.read_bytes()))
    with pytest.raises(UserError) as caught:
        build(LabelerConfig(weights=str(path)), Store())
    assert str(caught.value) == sentence.format(path=path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"overrides": ("MODEL.ROI_HEADS.NUM_CLASSES", "3")},
            "checkpoint {weights} does not fit the model: 8 have another ",
        ),
        (
            {"overrides": ("MODEL.ROI_HEADS.NUM_CLASSES=3",)},
            "labeler.overrides has 1 items; accepted is one list of KEY VALUE pairs, such as "
            "[MODEL.ROI_HEADS.NUM_CLASSES, 3]",
        ),
        (
            {"overrides": ("MODEL.ROI_HEAD.NUM_CLASSES", "3")},
            "the model overrides: unknown key MODEL.ROI_HEAD.NUM_CLASSES; the closest known key is "
            "MODEL.ROI_HEADS.NUM_CLASSES",
        ),
        (
            {"overrides": ("MODEL.ROI_HEADS.NUM_CLASSES", "three")},
            "the model overrides: MODEL.ROI_HEADS.NUM_CLASSES takes values of type int, such as 80, not 'three'",
        ),
        ({"config": "no.yaml"}, "model config no.yaml cannot be read: No such file or directory"),
        (
            {"config": "s3://bucket/a.yaml"},
            "labeler.config is s3://bucket/a.yaml; accepted are a local file, and null for the config in the "
            "checkpoint",
        ),
        ({"categories": ("a", "b")}, "labeler.categories names 2 categories, and the model has 6 classes"),
        (
            {"categories": "names.json"},
            "labeler.categories: names.json holds no categories; accepted are a JSON list of objects with id and "
            "name, a COCO json, and a text file with a name a line",
        ),
        ({"name": "os:path"}, "labeler.name is 'os:path', which is no class"),
        ({"name": "no.such:Class"}, "labeler.name is 'no.such:Class', which cannot be imported: No module named 'no'"),
    ],
)
def test_settings_that_do_not_fit_the_weights(
    at_home: None, weights: Path, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    """Labels of a model that was put together wrongly look like those of a bad one."""
    (tmp_path / "names.json").write_text('["a", "b", "c", "d", "e", "f"]')
    with pytest.raises(UserError) as caught:
        build(LabelerConfig(**{"weights": str(weights), **settings}), Store())
    assert str(caught.value).startswith(sentence.format(weights=weights))


def test_numbers_among_overrides_are_taken(refused: Refused, config: Path) -> None:
    """`[MODEL.ROI_HEADS.NUM_CLASSES, 3]` is what anyone would write; YAML makes a number of the 3."""
    settings = ["labeler.name=patchdct", "labeler.overrides=[MODEL.ROI_HEADS.NUM_CLASSES, 3]"]
    assert refused(label.main, config, *settings).startswith("labeler.weights is missing")


def test_weights_that_do_not_fit_stop_the_run(config: Path, weights: Path, tmp_path: Path) -> None:
    """What every shard would meet must stop the run at once, before any shard burns an attempt."""
    settings = [f"labeler.weights={weights}", "labeler.overrides=[MODEL.ROI_HEADS.NUM_CLASSES, 3]"]
    sentence = told_by_ray(start(config, "labeler.name=patchdct", *settings))
    assert sentence.startswith(
        f"checkpoint {weights} does not fit the model: 8 have another shape "
        "(roi_heads.box_predictor.cls_score.weight is (7, 16) and should be (4, 16), "
    )
    assert tree(tmp_path / "out") == set()
