"""Configs and settings that cannot be used: one sentence that names the key, and what is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import label
from tests.refusals import Refused

KEYS = {
    "labeler.batchsize=3": "labeler.batchsize is no known key; did you mean labeler.batch_size?",
    "labeler.batchSize=3": "labeler.batchSize is no known key; did you mean labeler.batch_size?",
    "batch_size=3": "batch_size is no known key; did you mean labeler.batch_size?",
    "labeller.name=x": "labeller is no known key; did you mean labeler?",
    "xyz=3": "xyz is no known key; known are input, output, labeler, run, limits",
    "run.workers={min: 1, max: 2, most: 3}": "run.workers.most is no known key; known are run.workers.min, "
    "run.workers.max",
    "run.workers={min: 1}": "run.workers.max is missing",
    "run.workers={min: 3, max: 2}": "run.workers is {'max': 2, 'min': 3}; it must be a whole number, or a range whose "
    "min is not above its max",
    "run.workers=many": "run.workers is 'many'; it must be a whole number, or a group of keys (min, max)",
    "run.workers=0": "run.workers is 0; it must be more than 0, or a group of keys (min, max)",
    "run.accept_changes=maybe": "run.accept_changes is 'maybe'; it must be true or false",
    "run.gpus_per_worker=1.5": "run.gpus_per_worker is 1.5; it must be a part of 1, or a whole number",
    "run.cpus_per_worker=.inf": "run.cpus_per_worker is inf; it must be a finite number",
    "input.format=zip": "input.format is 'zip'; it must be 'auto', 'tar', 'parquet', 'images' or 'coco'",
    "input.uri=": "input.uri is null; it must be a text, or a list",
    "input.uri=''": "input.uri is ''; it must be a text that is not empty, or a list",
    "input.uri=[]": "input.uri is []; it must be a text, or a list that is not empty",
    "input.uri=[a, 2024-01-01]": "input.uri[1] is 2024-01-01; it must be a text in quotes",
    "input.images_per_shard=5000000": "input.images_per_shard is 5000000; it must be 4194304 or less",
    "output.uri=2024": "output.uri is 2024; it must be a text in quotes",
    "output.formats=coco": "output.formats is 'coco'; it must be a list",
    "output.formats=[yolo]": "output.formats[0] is 'yolo'; it must be 'parquet' or 'coco'",
    "labeler.precision=fp8": "labeler.precision is 'fp8'; it must be 'fp32', 'bf16' or 'fp16'",
    "labeler.resize=pillow": "labeler.resize is 'pillow'; it must be 'cpu' or 'gpu'",
    "labeler.score_threshold=2": "labeler.score_threshold is 2; it must be 1.0 or less",
    "labeler.batch_size=2.5": "labeler.batch_size is 2.5; it must be a whole number, or 'auto'",
    "limits=3": "limits is 3; it must be a group of keys (max_image_bytes, max_image_pixels, isolate_decoding)",
    "run.only=pending": "run.only is 'pending'; it must be 'quarantined'",
    f"run.shard_timeout_s={10**30}": f"run.shard_timeout_s is {10**30}; it must be less than {1 << 53}",
}


@pytest.mark.parametrize("setting", KEYS)
def test_a_wrong_key_or_value(refused: Refused, config: Path, tmp_path: Path, setting: str) -> None:
    """A key or value that is taken for another, or refused without the accepted ones, costs the user a search."""
    assert refused(label.main, config, setting) == f"--set: {KEYS[setting]}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("run.workers", "--set run.workers: write it as key=value, for example --set run.workers=2"),
        ("run..workers=2", "--set run..workers=2: write it as key=value, for example --set run.workers=2"),
        ("labeler.name.x=2", "--set labeler.name.x=2: name is a value, not a group of keys"),
        (
            "run.workers=[",
            "--set run.workers=[: the value is no valid YAML: expected the node content, but found '<stream end>', in "
            "line 1",
        ),
    ],
)
def test_a_setting_that_is_none(refused: Refused, config: Path, setting: str, sentence: str) -> None:
    """A setting that is dropped in silence leaves the user with the old value."""
    assert refused(label.main, config, setting) == sentence


CONFIGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "{path} holds no mapping of keys; see configs/ for examples"),
    "list": (b"- a\n- b\n", "{path} holds no mapping of keys; see configs/ for examples"),
    "no YAML": (b"a: [b\nc: d\n", "{path} is no valid YAML: expected ',' or ']', but got ':', in line 2"),
    "a tab": (
        b"input:\n\turi: x\n",
        "{path} is no valid YAML: found character '\\t' that cannot start any token, in line 2",
    ),
    "binary": (bytes(range(256)), "{path} is no valid YAML: it is no text in UTF-8"),
    "deep": (b"[" * 2_000, "{path} is no valid YAML: it is nested too deeply"),
    "a bad date": (b"input: {uri: 2001-99-99}", "{path} is no valid YAML: month must be in 1..12"),
    "no input but": (
        b"inptu: {uri: x}\noutput: {uri: x}",
        "{path}: inptu is no known key; did you mean input?",
    ),
    "no output": (b"input: {uri: x}", "{path}: output is missing"),
    "no uri": (b"input: {}\noutput: {uri: x}", "{path}: input.uri is missing"),
    "laughs": (
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "{path} is no valid YAML: aliases (*name) are not accepted, in line 2",
    ),
    "a circle": (b"run: &r {address: *r}", "{path} is no valid YAML: aliases (*name) are not accepted, in line 1"),
    "a key twice": (
        b"input: {uri: x}\noutput: {uri: y}\ninput: {uri: z}",
        "{path} is no valid YAML: the key input comes twice, in line 3",
    ),
    "an empty group": (
        b"input: {uri: x}\noutput:\n",
        "{path}: output is null; it must be a group of keys (uri, formats)",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_none(refused: Refused, tmp_path: Path, case: str) -> None:
    """A config that cannot be read must be named, with the line."""
    content, sentence = CONFIGS[case]
    path = tmp_path / "label.yaml"
    path.write_bytes(content)
    assert refused(label.main, path) == sentence.format(path=path)


def test_a_config_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    """A path with a typing error, or of a folder."""
    assert refused(label.main, tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: no such config file"
    assert refused(label.main, tmp_path) == f"{tmp_path}: cannot be read (Is a directory)"


def test_a_config_cannot_run_anything(refused: Refused, tmp_path: Path) -> None:
    """YAML can name Python functions to be called, so a config from elsewhere could take over the machine."""
    path = tmp_path / "label.yaml"
    path.write_text("input: !!python/object/apply:os.mkdir [pwned]")
    assert "could not determine a constructor" in refused(label.main, path)
    assert not (tmp_path / "pwned").exists()
