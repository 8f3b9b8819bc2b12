"""`python -m jobs.evaluate` on real files: what it prints, what it writes, and that both are right."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as mask_api

from jobs import evaluate, predictions
from patchdct import scenes
from pipeline import corrections, ledger, runs
from pipeline.coco_file import annotations_of
from pipeline.config import EvaluateConfig, load
from pipeline.records import NO_INSTANCES
from pipeline.store import Store
from tests.fakes import draw
from tests.refusals import REPOSITORY, start
from tests.small_runs import IMAGES, make_run

CATEGORIES = [{"id": 1, "name": "bright"}, {"id": 7, "name": "dark"}]
SIZE = {"height": 32, "width": 48}

#: Runs the command on a config -> the figures of its line.
Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Measure:
    def run(config: Mapping[str, Any]) -> dict[str, Any]:
        path = tmp_path / "evaluate.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        code = evaluate.main(["--config", str(path)])
        out, err = capsys.readouterr()
        assert code == 0, err
        (line,) = out.splitlines()
        figures: dict[str, Any] = json.loads(line)
        return figures

    return run


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A folder with a run of one shard, its images, and a truth that has just the masks that the run has.

    One image is damaged: the truth has an object there, which the run cannot know.
    """
    store, run = Store(), str(tmp_path / "run")
    make_run(store, run, tmp_path / "in", shards=1)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number, row in enumerate(runs.read_rows(store, run), start=1):
        images.append({"id": number, "file_name": row.key, **SIZE})
        annotations += [{**one, "id": 0, "image_id": number} for one in annotations_of(row)]
        if row.status == "quarantined":
            annotations.append(box(number, 1, 4, 4, 10, 10))
            (tmp_path / "images" / row.key).write_bytes(b"this is no image")
        else:
            (tmp_path / "images" / row.key).write_bytes(draw(number - 1))
    truth = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path


def box(image_id: int, category_id: int, x: int, y: int, w: int, h: int, **more: Any) -> dict[str, Any]:
    """An annotation, or with a score a result, that fills a rectangle."""
    mask = np.zeros((SIZE["height"], SIZE["width"]), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = mask_api.encode(mask)
    counts = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {"image_id": image_id, "category_id": category_id, "segmentation": counts, "bbox": [x, y, w, h]} | more


def pictures(html: str, kind: str) -> int:
    return html.count(f'src="data:image/{kind};base64,')


def test_a_run_is_measured_and_reported(measure: Measure, labelled: Path) -> None:
    """The one command that says how good a run is: figures, pages, pictures, and where all of it comes from."""
    figures = measure(
        {
            "predictions": str(labelled / "run"),
            "truth": {"annotations": str(labelled / "truth.json"), "images": str(labelled / "images")},
            "metrics": ["coco", "boundary", "pr"],
            "output": str(labelled / "report"),
            "worst": 3,
        }
    )
    assert figures["images"] == IMAGES
    assert figures["mask"]["per_class"]["dark"] == pytest.approx(1)
    assert 0.5 < figures["mask"]["per_class"]["bright"] < 1  # the object in the damaged image is missed
    assert figures["matches"]["missed"] == figures["quarantined"] == 1
    assert "pr" not in figures
    assert "provenance" not in figures

    report = json.loads((labelled / "report/report.json").read_text())
    assert figures.items() <= report.items()
    assert len(report["pr"]["precision50"]) == 101
    provenance = report["provenance"]
    assert provenance["truth"]["sha256"] == hashlib.sha256((labelled / "truth.json").read_bytes()).hexdigest()
    assert provenance["predictions"]["run_id"] == ledger.read_manifest(Store(), str(labelled / "run")).run_id
    assert report["worst"][0]["file_name"] == "0-text.jpg"
    assert report["worst"][0]["missed"] == 1
    assert "1 images are quarantined" in report["notes"][0]

    text = (labelled / "report/report.md").read_text()
    assert "| dark |" in text
    html = (labelled / "report/report.html").read_text()
    assert pictures(html, "png") == 2
    assert pictures(html, "jpeg") == 4  # two images, each twice
    assert "Not shown: not_an_image" in html
    assert not re.search(r'(src|href)="(?!data:)', html), "the page must load nothing"


@pytest.mark.parametrize("predicted", ["run", "results.json"])
def test_images_in_small_parts_make_the_same_report(
    predicted: str, measure: Measure, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is measured some images at a time: one at the seam must be neither lost nor seen twice."""
    truth = json.loads((labelled / "truth.json").read_text())
    results = [{**one, "score": 0.4 + 0.1 * (n % 3)} for n, one in enumerate(truth["annotations"][1:])]
    (labelled / "results.json").write_text(json.dumps(results))
    config = {
        "predictions": str(labelled / predicted),
        "truth": {"annotations": str(labelled / "truth.json"), "images": str(labelled / "images")},
        "metrics": ["coco", "boundary", "pr"],
        "output": str(labelled / "report"),
        "worst": 3,
    }
    reports, pages = [], []
    for size in (500, 2, 1):
        monkeypatch.setattr(predictions, "_AT_ONCE", size)
        measure(config)
        report = json.loads((labelled / "report/report.json").read_text())
        del report["provenance"]
        reports.append(report)
        pages.append(re.findall('data:image/jpeg[^"]+', (labelled / "report/report.html").read_text()))
    assert reports[0] == reports[1] == reports[2]
    assert pages[0] == pages[1] == pages[2]
    assert reports[0]["images"] == IMAGES > 2
    assert len(reports[0]["worst"]) == 3


def test_quarantined_images_of_all_parts_are_counted(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note that names the last part's alone would make a run look sounder than it is."""
    monkeypatch.setattr(predictions, "_AT_ONCE", IMAGES)
    store, run = Store(), str(tmp_path / "run")
    make_run(store, run, tmp_path / "in", shards=2)
    images = [{"id": n, "file_name": row.key, **SIZE} for n, row in enumerate(runs.read_rows(store, run), start=1)]
    truth = {"images": images, "annotations": [box(1, 1, 2, 2, 9, 9), box(7, 7, 2, 2, 9, 9)], "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(truth))

    figures = measure(
        {
            "predictions": run,
            "truth": {"annotations": str(tmp_path / "truth.json")},
            "output": str(tmp_path / "report"),
        }
    )

    assert (figures["images"], figures["quarantined"]) == (2 * IMAGES, 2)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["instances_per_class"] == {"bright": 1, "dark": 1}
    assert "2 images are quarantined" in report["notes"][0]


def test_keys_of_later_images_are_named_too(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of other images must not pass for one of these because its first images fit."""
    monkeypatch.setattr(predictions, "_AT_ONCE", 1)
    truth = json.loads((labelled / "truth.json").read_text())
    truth["images"][2]["file_name"] = truth["images"][3]["file_name"] = "other.png"
    (labelled / "truth.json").write_text(json.dumps(truth))
    config = {"predictions": str(labelled / "run"), "truth": {"annotations": str(labelled / "truth.json")}}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config))
    assert evaluate.main(["--config", str(tmp_path / "evaluate.yaml")]) == 2
    assert f"2 of {IMAGES} image keys match no single image of the truth" in capsys.readouterr().err


def test_coco_results_are_measured(measure: Measure, labelled: Path) -> None:
    """Results of other tools go the same way; half of the objects found is half of the recall."""
    truth = [box(1, 1, 2, 2, 10, 10), box(1, 1, 20, 2, 10, 10), box(1, 1, 34, 2, 9, 9, iscrowd=1)]
    document = {"images": [{"id": 1, "file_name": "a.png", **SIZE}], "annotations": truth, "categories": CATEGORIES}
    (labelled / "two.json").write_text(json.dumps(document))
    results = [box(1, 1, 2, 2, 10, 10, score=0.9), box(1, 7, 2, 20, 9, 9, score=0.6)]
    (labelled / "results.json").write_text(json.dumps(results))
    for engine in ("fast", "pycocotools"):
        figures = measure(
            {
                "predictions": str(labelled / "results.json"),
                "truth": {"annotations": str(labelled / "two.json")},
                "metrics": ["coco"],
                "engine": engine,
                "output": str(labelled / engine),
            }
        )
        assert figures["mask"]["AP"] == pytest.approx(51 / 101)  # precision 1 up to recall 0.5 of 0, 0.01, ... 1
        assert figures["mask"]["AR"] == pytest.approx(0.5)
        assert (figures["matches"]["missed"], figures["matches"]["spurious"]) == (1, 1)
    report = json.loads((labelled / "fast/report.json").read_text())
    assert report["instances_per_class"] == {"bright": 2, "dark": 0}
    sha256 = hashlib.sha256((labelled / "results.json").read_bytes()).hexdigest()
    assert report["provenance"]["predictions"]["sha256"] == sha256
    assert "set truth.images to see them here" in (labelled / "fast/report.html").read_text()


def test_only_what_counts_is_drawn(measure: Measure, tmp_path: Path) -> None:
    """A picture full of guesses below the score that the caption names would show other errors than it counts."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((32, 48, 3), 128, np.uint8)).save(tmp_path / "images/a.png")
    truth = [box(1, 1, 2, 2, 10, 10)]
    document = {"images": [{"id": 1, "file_name": "a.png", **SIZE}], "annotations": truth, "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    results = [box(1, 1, 2, 18, 18, 10, score=0.9), box(1, 7, 26, 18, 18, 10, score=0.3)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    measure(
        {
            "predictions": str(tmp_path / "results.json"),
            "truth": {"annotations": str(tmp_path / "truth.json"), "images": str(tmp_path / "images")},
            "output": str(tmp_path / "report"),
        }
    )
    _, second = re.findall(r"data:image/jpeg;base64,([^\"]+)", (tmp_path / "report/report.html").read_text())
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(second)))).astype(int)
    scale = picture.shape[0] // 32
    sure, unsure = picture[25 * scale, 15 * scale], picture[25 * scale, 35 * scale]
    assert np.abs(sure - 128).max() > 30 > np.abs(unsure - 128).max()


def test_a_checkpoint_labels_and_is_measured(measure: Measure, tmp_path: Path) -> None:
    """A checkpoint is measured by one command, which a second time labels nothing, and never measures an older one."""
    scenes.write_scenes(tmp_path / "scenes", images=6, seed=5)
    weights = tmp_path / "model.pth"
    weights.write_bytes((REPOSITORY / "configs/model/patchdct_demo.pth").read_bytes())
    config = {
        "predictions": str(weights),
        "truth": {
            "annotations": str(tmp_path / "scenes/annotations.json"),
            "images": str(tmp_path / "scenes/images"),
        },
        "metrics": ["coco"],
        "max_detections": 150,
        "run": {"workers": 1},
        "output": str(tmp_path / "report"),
        "worst": 1,
    }
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(config))
    code, out, err = start(tmp_path / "first.yaml", command="jobs.evaluate")
    assert code == 0, "\n".join(err)
    figures = json.loads(out)
    assert figures["images"] == 6
    assert figures["mask"]["AP"] > 0.6
    manifest = ledger.read_manifest(Store(), str(tmp_path / "report/run"))
    assert manifest.config["labeler"]["max_instances"] == 150  # type: ignore[index]
    assert pictures((tmp_path / "report/report.html").read_text(), "jpeg") == 2
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["provenance"]["predictions"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()

    before = [(one.shard_id, one.attempt) for one in ledger.commits(Store(), str(tmp_path / "report/run"))]
    assert measure(config) == figures
    assert before == [(one.shard_id, one.attempt) for one in ledger.commits(Store(), str(tmp_path / "report/run"))]

    bare = {"annotations": config["truth"]["annotations"]}  # the run knows where its images are
    again = measure({"predictions": str(tmp_path / "report/run"), "truth": bare, "output": str(tmp_path / "again")})
    assert again["mask"]["AP"] == figures["mask"]["AP"]
    assert pictures((tmp_path / "again/report.html").read_text(), "jpeg") == 12

    listing = json.loads((tmp_path / "report/images.json").read_text())
    listing["info"]["checkpoint"] = "0" * 64  # as if the file had been another one then
    (tmp_path / "report/images.json").write_text(json.dumps(listing))
    with pytest.raises(AssertionError, match="holds the run of another checkpoint; give another output"):
        measure(config)


def test_lvis(measure: Measure, tmp_path: Path) -> None:
    """LVIS' own ids are taken for COCO's, and what was not checked in an image does not count as an error."""
    names = {"dog": "dog.n.01", "cat": "cat.n.01", "sofa": "sofa.n.01"}
    categories = [
        {"id": number, "name": name, "synset": synset, "frequency": "f"}
        for number, (name, synset) in enumerate(names.items(), start=1)
    ]
    image = {"id": 5, "file_name": "COCO_val2014_000000000005.jpg", **SIZE}
    image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    truth = {"images": [image], "annotations": [box(5, 1, 2, 2, 10, 10, id=1, area=100)], "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    dog, cat = 18, 17  # COCO's
    results = [box(5, dog, 2, 2, 10, 10, score=0.5), box(5, cat, 20, 20, 9, 9, score=0.9)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    figures = measure(
        {
            "predictions": str(tmp_path / "results.json"),
            "truth": {"name": "lvis_v0.5", "annotations": str(tmp_path / "truth.json")},
            "metrics": ["lvis"],
            "max_detections": 300,
            "output": str(tmp_path / "report"),
        }
    )
    assert figures["lvis"]["AP"] == pytest.approx(1)
    assert "LVIS AP" in (tmp_path / "report/report.html").read_text()
    assert "mask" not in figures


def test_cityscapes(measure: Measure, tmp_path: Path) -> None:
    """The benchmark's own AP on its own files; half of the cars found."""
    ids = np.full((64, 128), 7, np.uint16)  # road
    ids[10:30, 10:40], ids[10:30, 60:90] = 26_000, 26_001
    city = tmp_path / "gtFine/val/bonn"
    city.mkdir(parents=True)
    Image.fromarray(ids).save(city / "bonn_000000_000019_gtFine_instanceIds.png")
    (tmp_path / "images/bonn").mkdir(parents=True)
    photo = io.BytesIO()
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(photo, "PNG")
    (tmp_path / "images/bonn/bonn_000000_000019_leftImg8bit.png").write_bytes(photo.getvalue())
    mask = np.asfortranarray(ids == 26_000, np.uint8)
    rle = mask_api.encode(mask)
    rle["counts"] = rle["counts"].decode()
    (tmp_path / "results.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 26, "score": 0.9, "segmentation": rle}])
    )
    figures = measure(
        {
            "predictions": str(tmp_path / "results.json"),
            "truth": {
                "name": "cityscapes",
                "annotations": str(tmp_path / "gtFine/val"),
                "images": str(tmp_path / "images"),
            },
            "metrics": ["cityscapes", "coco"],
            "output": str(tmp_path / "report"),
        }
    )
    assert figures["cityscapes"]["AP50"] == pytest.approx(0.5)
    assert figures["cityscapes"]["per_class"]["bus"] is None
    assert figures["mask"]["AR"] == pytest.approx(0.5)
    assert pictures((tmp_path / "report/report.html").read_text(), "jpeg") == 2
    assert json.loads((tmp_path / "report/report.json").read_text())["provenance"]["truth"]["sha256"] is None


def test_the_upper_bound_needs_no_predictions(measure: Measure, labelled: Path) -> None:
    """How good masks could be is asked before there is a model."""
    figures = measure(
        {
            "truth": {"annotations": str(labelled / "truth.json")},
            "metrics": ["upper_bound"],
            "output": str(labelled / "report"),
        }
    )
    assert set(figures) == {"upper_bound"}
    bound = figures["upper_bound"]
    assert bound["instances"] == len(json.loads((labelled / "truth.json").read_text())["annotations"])
    assert bound["encodings"]["PatchDCT 6"]["mask"]["AP"] > 0.9
    for name in ("report.md", "report.html"):
        text = (labelled / "report" / name).read_text()
        assert "PatchDCT 6" in text
        assert "Average precision" not in text


def test_images_that_are_gone_change_no_figure_of_a_run(measure: Measure, labelled: Path) -> None:
    """Images are there to look at: a folder that lacks some must not make a run look better or worse than it is."""
    config: dict[str, Any] = {
        "predictions": str(labelled / "run"),
        "truth": {"annotations": str(labelled / "truth.json")},
        "output": str(labelled / "report"),
    }
    figures = measure(config)
    (labelled / "images/0-text.jpg").unlink()
    config["truth"]["images"] = str(labelled / "images")
    assert measure(config) == figures
    html = (labelled / "report/report.html").read_text()
    assert "lacks 1 images of the truth (0-text.jpg); they cannot be shown" in html
    assert "Not shown: the image is not there" in html


def test_names_from_outside_cannot_run_in_the_page(measure: Measure, tmp_path: Path) -> None:
    """The page is opened in a browser, and category and file names come from anybody."""
    evil = '<script>alert("1")</script>'
    document = {
        "images": [{"id": 1, "file_name": f"{evil}.png", **SIZE}],
        "annotations": [box(1, 1, 2, 2, 10, 10)],
        "categories": [{"id": 1, "name": evil}, {"id": 2, "name": "a|b $x$ 猫"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps([box(1, 1, 5, 2, 10, 10, score=0.9)]))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/other.png").write_bytes(draw(0))
    document["images"].append({"id": 2, "file_name": "other.png", **SIZE})  # type: ignore[attr-defined]
    (tmp_path / "truth.json").write_text(json.dumps(document))
    measure(
        {
            "predictions": str(tmp_path / "results.json"),
            "truth": {"annotations": str(tmp_path / "truth.json"), "images": str(tmp_path / "images")},
            "metrics": ["coco", "pr"],
            "output": str(tmp_path / "report"),
        }
    )
    html = (tmp_path / "report/report.html").read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;") >= 2
    text = (tmp_path / "report/report.md").read_text()
    assert "<script" not in re.sub(r"\\<", "", text)
    assert r"a\|b \$x\$" in text


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/evaluate").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configs_go_together(path: Path) -> None:
    """A config that a user copies must not be refused for a key."""
    config = load(EvaluateConfig, str(path))
    for metric in config.metrics:
        assert config.truth.name == evaluate.FORMS.get(metric, config.truth.name)
    assert config.model.config is None or (REPOSITORY / config.model.config).is_file()
    assert config.predictions or config.metrics == ("upper_bound",)


def test_what_people_corrected_is_measured_and_told(measure: Measure, labelled: Path) -> None:
    """Whoever answers for labels measures those that are handed over, and must know that people were at them."""
    store, run = Store(), str(labelled / "run")
    config = {"predictions": run, "truth": {"annotations": str(labelled / "truth.json")}, "output": str(labelled / "o")}
    before = measure(config)
    manifest = ledger.read_manifest(store, run)
    (commit,) = runs.read_commits(store, run, manifest)
    row = next(row for row in runs.rows(store, run, commit) if len(row.instances))
    none = replace(row, instances=NO_INSTANCES, status="empty")
    said: dict[str, Any] = {"by": "anna", "source": "a.json", "source_sha256": "0" * 64, "counts": {"images": 1}}
    corrections.write(store, run, manifest, {commit.shard_id: [none]}, **said)
    after = measure(config)
    assert after["results"] == before["results"] - len(row.instances)
    assert "people have corrected 1 images" in (labelled / "o/report.md").read_text()
