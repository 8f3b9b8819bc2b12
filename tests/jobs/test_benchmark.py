"""`python -m jobs.benchmark`: the figures must be of the work that they are named for, and nothing else may change."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs import benchmark
from jobs.benchmarks import peers, report, stages, whole
from jobs.benchmarks.ceiling import ceiling
from jobs.benchmarks.work import Work, choose, fresh_folder, records
from patchdct import scenes, stage_times
from patchdct.checkpoint import save_checkpoint
from pipeline import ledger, runs
from pipeline.config import InputConfig, LabelConfig, LabelerConfig, OutputConfig
from pipeline.labelers import build
from pipeline.store import Store
from pipeline.worker import Run
from tests.fakes import draw, write_tar
from tests.patchdct import small

MODEL_STAGES = {"normalise", "backbone", "rpn", "box_head", "mask_head", "model_rest"}
STAGES = {"read", "decode", "resize", *MODEL_STAGES, "paste", "parquet", "coco", "commit"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a model that is small enough to be measured in no time."""
    path, cfg = tmp_path_factory.mktemp("model") / "small.pth", small.config()
    state = small.model(cfg).state_dict()
    save_checkpoint(path, state, categories=scenes.CATEGORIES, config_text=cfg.dump(), provenance=None)
    return str(path)


@pytest.fixture
def config(tmp_path: Path, weights: str) -> LabelConfig:
    """Two tars of three images each, one of which is none."""
    for number in range(2):
        files = {f"{number}-{i}.png": draw(10 * number + i, width=96, height=64) for i in range(2)}
        write_tar(tmp_path / "in" / f"{number}.tar", {**files, f"{number}-text.jpg": b"this is no image"})
    return LabelConfig(
        input=InputConfig(uri=(str(tmp_path / "in"),)),
        output=OutputConfig(uri=str(tmp_path / "out")),
        labeler=LabelerConfig(weights=weights, batch_size=2, score_threshold=0.0),
    )


def written(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_the_command_measures_and_leaves_no_trace(
    config: LabelConfig, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report that lacks a figure, a ratio of other figures than it shows, or files left in the user's output."""
    raw = {
        "input": {"uri": str(tmp_path / "in")},
        "output": {"uri": str(tmp_path / "out/run")},
        "labeler": {"weights": weights, "batch_size": 2, "score_threshold": 0.0},
    }
    (tmp_path / "label.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("a run")
    before = written(tmp_path / "out")
    file = tmp_path / "figures.json"
    arguments = ["--config", str(tmp_path / "label.yaml"), "--json", str(file), "--repeats", "1", "--seconds", "1"]
    assert benchmark.main([*arguments, "--set", "run.workers=1"]) == 0
    assert written(tmp_path / "out") == before
    out = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert set(found["stages"]) == STAGES
    assert all(stage["ms_per_image"] > 0 for stage in found["stages"].values())
    assert sum(stage["share"] for stage in found["stages"].values()) == pytest.approx(1)
    rates = found["images_per_s"]
    assert set(rates) == {"ceiling", "worker", "run"}
    assert found["ratios"] == {
        "run/ceiling": pytest.approx(rates["run"] / rates["ceiling"]),
        "worker/ceiling": pytest.approx(rates["worker"] / rates["ceiling"]),
    }
    assert rates["run"] == pytest.approx(found["settings"]["images"] / found["run_s"]["labeling"])
    for name in ("backbone", "paste to RLE", "the whole run", "run/ceiling", found["versions"]["torch"], found["date"]):
        assert name in out
    assert found["command"].startswith("python -m jobs.benchmark --config")
    assert Image.open(tmp_path / "figures.png").size[0] > 500


@pytest.mark.slow
def test_peers_are_measured(config: LabelConfig) -> None:
    """Ray Data and detectron2 change from version to version; a peer that fails must be seen before it is quoted."""
    found = benchmark.run(config, repeats=1, seconds=1, others=("detectron2", "ray_data"))
    rates = found["images_per_s"]
    assert rates["detectron2"] > 0
    assert found["ratios"]["run/ray_data"] == pytest.approx(rates["run"] / rates["ray_data"])


def chosen(config: LabelConfig, tmp_path: Path, *, images: int, workers: int = 1) -> Work:
    return choose(config, folder=str(tmp_path / "bench"), workers=workers, images=images, store=Store())


def keys(work: Work) -> list[str]:
    run = Run(id="", uri=work.folder, config=work.config)
    work.put_listings(work.folder, Store())
    return [record.key for shard in work.shards for record in records(shard, run, Store())]


def test_a_small_input_is_labelled_over_and_over(config: LabelConfig, tmp_path: Path) -> None:
    """Shards that share an id would be committed once, and the rate be that of images that nobody labelled."""
    work = chosen(config, tmp_path, images=13)
    assert (work.images, work.loops, work.packed) == (18, 3, False)
    assert len({shard.id for shard in work.shards}) == len({shard.number for shard in work.shards}) == 6
    assert keys(work) == 3 * keys(chosen(config, tmp_path, images=6))


def test_each_worker_has_a_shard(config: LabelConfig, tmp_path: Path) -> None:
    """A worker without a shard would make the run look slow."""
    assert len(chosen(config, tmp_path, images=6, workers=3).shards) >= 3


def test_a_large_shard_is_cut(config: LabelConfig, tmp_path: Path) -> None:
    """A shard of a thousand images takes an hour on a CPU."""
    write_tar(tmp_path / "in/0.tar", {f"{i}.png": draw(i) for i in range(40)})
    work = chosen(config, tmp_path, images=8)
    assert (work.images, work.packed, len(work.shards)) == (8, True, 4)
    assert len(keys(work)) == 8


def test_a_large_listing_is_cut(config: LabelConfig, tmp_path: Path) -> None:
    """Single images are to be read one by one here as well, since that takes longer than reading a tar."""
    (tmp_path / "images").mkdir()
    for i in range(40):
        (tmp_path / "images" / f"{i:02d}.png").write_bytes(draw(i))
    single = replace(config, input=InputConfig(uri=(str(tmp_path / "images"),), format="images"))
    work = chosen(single, tmp_path, images=8)
    assert (work.images, work.packed) == (8, False)
    assert keys(work) == [f"{i:02d}.png" for i in range(8)]


def test_a_fresh_folder_goes_even_when_the_work_fails(tmp_path: Path) -> None:
    """What a measure leaves in the user's bucket is paid for, and may look like labels."""
    (tmp_path / "kept").mkdir()
    for output in (tmp_path / "new/deep", tmp_path / "kept"):
        with pytest.raises(RuntimeError), fresh_folder(str(output), Store()) as folder:  # noqa: PT012
            Store().put(f"{folder}/a/b.json", b"{}")
            raise RuntimeError
    assert written(tmp_path) == {tmp_path / "kept"}


def test_a_fresh_folder_in_a_bucket(s3_uri: str) -> None:
    """As on a disk; the bucket has other things in it."""
    store = Store()
    store.put(f"{s3_uri}/kept", b"")
    with fresh_folder(s3_uri, store) as folder:
        store.put(f"{folder}/a/b.json", b"{}")
    assert [info.uri for info in store.list(f"{s3_uri}/")] == [f"{s3_uri}/kept"]


def test_stages_label_what_the_worker_labels(config: LabelConfig, tmp_path: Path) -> None:
    """Stages that skip the images, or write nothing, would be quick."""
    store = Store()
    work = chosen(config, tmp_path, images=6)
    found = stages.measure(work, build(config.labeler, store), size=2, store=store)
    assert set(found) == STAGES
    (uri,) = (str(path) for path in Path(work.folder).glob("stages-*"))
    assert ledger.totals(ledger.commits(store, uri)).images == 6
    assert sorted(row.status for row in runs.read_rows(store, uri)).count("quarantined") == 2


def test_stages_of_a_labeler_without_steps(config: LabelConfig, tmp_path: Path) -> None:
    """A user's own class is one stage; it has no backbone that could be looked into."""
    config = replace(config, labeler=LabelerConfig(name="tests.fakes:ThresholdLabeler"))
    found = stages.measure(chosen(config, tmp_path, images=6), build(config.labeler, Store()), size=2, store=Store())
    assert set(found) == {"read", "decode", "label", "parquet", "coco", "commit"}


def test_timing_leaves_the_model_as_it_was() -> None:
    """A model that keeps its clocks would wait for the GPU at each stage in all that follows."""
    model = small.model(small.config())
    noted: dict[str, float] = {}
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    with stage_times.timed(model, lambda name, seconds: noted.update({name: seconds})):
        model.inference([{"image": small.torch.zeros(3, 64, 64)}])
    assert set(noted) == set(stage_times.STAGES)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_the_plain_loop_does_the_same_work(config: LabelConfig) -> None:
    """A peer that finds other masks is no peer."""
    image = scenes.draw_scene(7, 96).image
    rows = peers.plain_loop(config, Store())(image, 5)
    (found,) = build(config.labeler, Store()).label([image])
    assert len(found) > 0
    there = [row for row in rows if row["segmentation"]["counts"] in found.counts]  # without empty masks
    assert [row["segmentation"]["counts"] for row in there] == list(found.counts)
    assert {row["image_id"] for row in rows} == {5}
    np.testing.assert_allclose([row["score"] for row in there], found.scores, atol=1e-5)


def test_cpu_seconds_are_those_of_all_processes() -> None:
    """The workers of a run are processes below Ray's; without them the run would seem to cost nothing."""
    before = whole.cpu_seconds()
    burn = "import time, sys\nwhile time.process_time() < 0.5: pass\nprint(flush=True); sys.stdin.read()"
    shell = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, burn]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert whole.cpu_seconds() - before > 0.45
        process.stdin.close()


@pytest.mark.slow
def test_the_ceiling_is_that_of_all_workers(config: LabelConfig, tmp_path: Path) -> None:
    """A ceiling of one process would let two workers look better than the machine."""
    config = replace(config, labeler=LabelerConfig(name="tests.fakes:PacedLabeler"))  # which sleeps: cores do not count
    rates = []
    for workers in (1, 2):
        work = chosen(config, tmp_path, images=12, workers=workers)
        with ceiling(work, size=1, gpus=0, store=Store()) as top:
            rates.append(top.measure(24).rate)
    assert 1.5 < rates[1] / rates[0] < 3


def test_medians_and_ratios() -> None:
    """The ratio of medians of different repeats is that of moments which never met."""
    samples = {
        "stages": [{"read": 1.0, "label": 3.0}, {"read": 2.0, "label": 3.0}, {"read": 9.0, "label": 3.0}],
        "images_per_s": [
            {"ceiling": 10.0, "worker": 5.0, "run": 8.0},
            {"ceiling": 20.0, "worker": 5.0, "run": 19.0},
            {"ceiling": 5.0, "worker": 5.0, "run": 4.5},
        ],
        "cpu_ms": [{"worker": 3.0}, {"worker": 1.0}, {"worker": 2.0}],
        "run_s": [{"starting": 3.0}, {"starting": 1.0}, {"starting": 2.0}],
    }
    found = report.summary(samples, images=100, workers=2)
    assert found["stages"]["read"] == {"ms_per_image": 20.0, "share": 0.4}
    assert found["images_per_s"] == {"ceiling": 10.0, "worker": 5.0, "run": 8.0}
    assert found["ratios"] == {"run/ceiling": 0.9, "worker/ceiling": 1.0}
    assert found["run_s"] == {"starting": 2.0}


@pytest.mark.parametrize(
    ("words", "settings", "sentence"),
    [
        (["--peers", "mmdet"], {}, "--peers has 'mmdet'; accepted are detectron2, ray_data"),
        (["--json", "no/such/a.json"], {}, "--json is no/such/a.json; give a file in a folder that is there"),
        (["--peers", "detectron2"], {"labeler.name": "tests.fakes:ThresholdLabeler"}, "--peers has detectron2, which"),
        ([], {"labeler.weights": "no.pth"}, "labeler.weights"),
        ([], {"input.uri": "nowhere"}, "input.uri: there is nothing at"),
        ([], {"run.workers": 1000}, "run.workers is 1000"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    config: LabelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    settings: dict[str, object],
    sentence: str,
) -> None:
    """A typing error must cost a second and end in a sentence, not in a traceback after minutes of measuring."""
    monkeypatch.chdir(tmp_path)
    raw = {"input": {"uri": "in"}, "output": {"uri": "out"}, "labeler": {"weights": config.labeler.weights}}
    (tmp_path / "label.yaml").write_text(yaml.safe_dump(raw))
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert benchmark.main(["--config", "label.yaml", *words, *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {sentence}" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
