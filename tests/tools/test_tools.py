"""Each export opened by the tool that it is for: as many masks, of the same classes and scores, pixel for pixel.

The tools have an environment of their own, `make test-tools`; PATCHLABEL_TOOLS names the Python of another one. A run
of your own is tried with PATCHLABEL_RUN.
"""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline import polygons, runs
from pipeline.exports import export
from pipeline.exports.common import Request, items
from pipeline.exports.yolo import label_path
from pipeline.store import Store
from tests.tools.awkward import SIZE, make_run

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("PATCHLABEL_TOOLS", REPOSITORY / "build/tools/bin/python"))
READERS = Path(__file__).parent / "readers"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is not there; make test-tools installs the tools"),
]


@pytest.fixture(scope="module")
def store():
    return Store()


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    if "PATCHLABEL_RUN" in os.environ:
        return os.environ["PATCHLABEL_RUN"]
    make_run(store, str(folder / "run"), folder / "inputs")
    return str(folder / "run")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the tools keep their settings and databases; and no network."""
    folder = tmp_path_factory.mktemp("home")
    settings = {
        "HOME": str(folder),
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "true",
        "FIFTYONE_DATABASE_DIR": str(folder / "fiftyone"),
        "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_DO_NOT_TRACK": "true",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
    }
    return folder, settings


def read(home, reader, *arguments):
    """What a tool makes of an export: by image, its instances."""
    folder, settings = home
    out = folder / "out.jsonl"
    command = [str(PYTHON), str(READERS / f"{reader}.py"), *map(str, arguments), str(out)]
    done = subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in out.read_text().splitlines()]


def expected(store, run, *, by_key=False, images=False):
    """The rows that an export holds, by the end of the name that the tool has for them."""
    request = Request(labels=runs.opened(store, run), out="", images=images)
    found = [item for item in items(request) if item.row.status != "quarantined"]
    return [(item.row.key if by_key else item.name, item.row) for item in found], {
        category.id: category.name for category in request.labels.categories
    }


def pair(found, rows):
    """The images of a tool with the rows that they are of: in the same order, or by name."""
    assert len(found) == len(rows)
    if all(one["image"].endswith(name) for one, (name, _) in zip(found, rows, strict=True)):
        return [(one["instances"], row) for one, (_, row) in zip(found, rows, strict=True)]
    by_name = dict(rows)
    return [
        (one["instances"], next(row for name, row in by_name.items() if one["image"].endswith(f"/{name}")))
        for one in found
    ]


def compare(found, rows, names, quality=()):
    """All equal: masks, classes, scores, quality columns."""
    masks = 0
    for instances, row in pair(found, rows):
        assert [one["counts"] for one in instances] == list(row.instances.counts)
        assert [one["label"] for one in instances] == [names[one] for one in row.instances.category_ids.tolist()]
        np.testing.assert_allclose([one["score"] for one in instances], row.instances.scores, atol=1e-6)
        for name in quality:
            values = np.array([one[name] for one in instances], np.float32)
            np.testing.assert_allclose(values, row.instances.quality[name], atol=1e-6)
        masks += len(instances)
    assert masks > 0


def columns(store, run):
    row = next(row for row in runs.opened(store, run).all_rows() if len(row.instances))
    return tuple(row.instances.quality)


def test_pycocotools_and_fiftyone_read_coco(store, run, home, tmp_path):
    """Two readers, as FiftyOne passes over what pycocotools would take."""
    export(store, run, format="coco", out=str(tmp_path / "out.json"))
    compare(read(home, "coco", tmp_path / "out.json"), *expected(store, run, by_key=True))


def test_fiftyone_reads_its_dataset(store, run, home, tmp_path):
    """A mask that FiftyOne stretches over a box that is not its own lies a pixel beside the object."""
    export(store, run, format="fiftyone", out=str(tmp_path / "out"), images=True)
    quality = columns(store, run)
    found = read(home, "fiftyone_", tmp_path / "out", *quality)
    compare(found, *expected(store, run, images=True), quality)


@pytest.mark.parametrize("polygons", [False, True])
def test_datumaro_reads_cvat(store, run, home, tmp_path, polygons):
    """CVAT's RLE goes along rows and starts at the box: a transposed mask is still a mask."""
    export(store, run, format="cvat", out=str(tmp_path / "out"), images=True, polygons=polygons)
    compare(read(home, "cvat", tmp_path / "out"), *expected(store, run, images=True))


@pytest.mark.parametrize("polygons", [False, True])
def test_label_studio_reads_tasks(store, run, home, tmp_path, polygons):
    """A brush stroke of a wrong length shifts the mask, and a region that the configuration does not know is lost."""
    export(store, run, format="labelstudio", out=str(tmp_path / "out"), polygons=polygons)
    compare(read(home, "labelstudio", tmp_path / "out"), *expected(store, run, by_key=True))


@pytest.mark.parametrize("images", [False, True])
def test_datasets_loads_hugging_face(store, run, home, tmp_path, images):
    """`load_dataset` refuses a folder whose card, features and files do not agree."""
    export(store, run, format="hf", out=str(tmp_path / "out"), images=images)
    quality = columns(store, run)
    compare(read(home, "hf", tmp_path / "out", *quality), *expected(store, run, by_key=True), quality)


def test_duckdb_and_polars_read_the_tables(store, run, home, tmp_path):
    """The two tables must join, and mean the same to both."""
    export(store, run, format="parquet", out=str(tmp_path / "out"))
    quality = columns(store, run)
    compare(read(home, "tables", tmp_path / "out", *quality), *expected(store, run, by_key=True), quality)


@pytest.mark.skipif("PATCHLABEL_RUN" in os.environ, reason="is of images of the test's own size")
def test_ultralytics_trains_on_the_same_masks(store, run, home, tmp_path):
    """Polygons along the edges of pixels grow by a pixel when OpenCV draws them, and holes are lost without bridges."""
    export(store, run, format="yolo", out=str(tmp_path / "out"), images=True)
    assert not {path.name for path in (tmp_path / "out").iterdir()} - {"images", "labels", "data.yaml"}
    rows, names = expected(store, run, images=True)
    assert all((tmp_path / "out" / label_path(name)).exists() for name, _ in rows)
    found = read(home, "yolo", tmp_path / "out", max(SIZE), 1)
    exact = masks = 0
    for instances, row in pair(found, rows):
        assert Counter(one["label"] for one in instances) == Counter(
            names[one] for one in row.instances.category_ids.tolist()
        )
        theirs = [{"size": [row.height, row.width], "counts": one["counts"]} for one in instances]
        ours = [{"size": [row.height, row.width], "counts": one} for one in row.instances.counts]
        if (row.height, row.width) != SIZE or not ours:
            continue
        best = np.asarray(mask_api.iou(theirs, ours, [0] * len(ours))).max(axis=0)
        for overlap, counts in zip(best, row.instances.counts, strict=True):
            if len(polygons.outlines(counts, row.height, row.width)) == 1:
                assert overlap == 1
                exact += 1
            masks += 1
    assert exact > masks / 2 > 0
