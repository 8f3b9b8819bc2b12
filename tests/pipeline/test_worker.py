"""One shard from bytes to commit, without Ray: the same rows from every form of input; bad images; races."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from pipeline import founding, ledger, runs
from pipeline.config import InputConfig, LabelConfig, LabelerConfig, LimitsConfig, OutputConfig
from pipeline.errors import RunError, ShardError
from pipeline.plan import plan
from pipeline.records import Commit, ImageLabels, Instances, Pixels
from pipeline.store import Store
from pipeline.worker import Run, label_shard
from tests.fakes import ThresholdLabeler, draw, write_tar
from tests.pack import FORMS, as_coco

COUNT = 23


def label(uri: Path | str, out: Path | str, **changes: object) -> list[Commit]:
    """Plan and label all shards of an input, as the driver does with its workers."""
    config = LabelConfig(
        input=InputConfig(uri=str(uri), images_per_shard=10),
        output=OutputConfig(uri=str(out)),
        labeler=LabelerConfig(name="tests.fakes:ThresholdLabeler", batch_size=4),
        limits=LimitsConfig(max_image_bytes=100_000, max_image_pixels=1_000_000),
    )
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    store = Store()
    labeler = ThresholdLabeler(config.labeler, store)
    manifest, _ = founding.open_run(config, store)
    manifest = dataclasses.replace(manifest, fingerprint=labeler.fingerprint, categories=labeler.categories)
    assert ledger.write_manifest(store, str(out), manifest)
    run = Run(id=manifest.run_id, uri=str(out), config=config)
    return [label_shard(shard, run=run, store=store, labeler=labeler) for shard in manifest.shards]


def rows(out: Path | str) -> dict[str, ImageLabels]:
    return {row.key: row for row in runs.read_rows(Store(), str(out))}


def content(row: ImageLabels) -> tuple[object, ...]:
    x = row.instances
    return (
        row.status,
        row.height,
        row.width,
        x.counts,
        *(
            tuple(map(tuple, a.reshape(len(x), -1)))
            for a in (x.category_ids, x.scores, x.boxes, x.areas, x.quality["contrast"])
            if len(x)
        ),
    )


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{i:03d}.png" for i in range(COUNT)]
    for i, path in enumerate(paths):
        path.write_bytes(draw(i))
    return paths


def test_the_same_images_give_the_same_rows_from_every_form(images: list[Path], tmp_path: Path) -> None:
    """Labels that depend on how images were packed, or keys that do not match, cannot be joined with anything."""
    found = {}
    for form, pack in FORMS.items():
        label(pack(images, tmp_path / f"as-{form}"), tmp_path / f"{form}-run")
        found[form] = {key: content(row) for key, row in rows(tmp_path / f"{form}-run").items()}
    assert len(found["tar"]) == COUNT
    assert sum(len(row[3]) for row in found["tar"].values()) > COUNT  # type: ignore[arg-type]
    for form in FORMS:
        assert found[form] == found["tar"], form


def test_coco_input_keeps_its_own_image_ids(images: list[Path], tmp_path: Path) -> None:
    """With other ids, labels could not be compared with the truth of the same json."""
    label(as_coco(images, tmp_path / "coco"), tmp_path / "run")
    assert {row.key: row.image_id for row in rows(tmp_path / "run").values()} == {
        path.name: number for number, path in enumerate(images, start=1)
    }


def test_image_ids_are_stable_and_unique_over_shards(tmp_path: Path) -> None:
    """Ids that collide between shards merge two images in every COCO tool; ids that move make runs incomparable."""
    for shard in range(3):
        write_tar(tmp_path / f"in/{shard}.tar", {f"{i}.png": draw(i) for i in range(5)})  # the same keys in each
    label(tmp_path / "in", tmp_path / "a")
    other = LabelerConfig(name="tests.fakes:ThresholdLabeler", score_threshold=0.3, batch_size=2)
    label(tmp_path / "in", tmp_path / "b", labeler=other)
    ids = [[row.image_id for row in runs.read_rows(Store(), str(tmp_path / name))] for name in ("a", "b")]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 15
    assert max(ids[0]) < 2**53


def test_bad_images_are_rows_with_a_reason_and_the_shard_commits(tmp_path: Path) -> None:
    """One truncated upload must cost one row, not the shard, and must never vanish."""
    noise = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(noise, "JPEG")
    large = io.BytesIO()
    Image.new("L", (2000, 2000)).save(large, "PNG")
    write_tar(
        tmp_path / "in.tar",
        {
            "good.png": draw(1),
            "cut.jpg": noise.getvalue()[:3000],
            "text.jpg": b"this is no image",
            "nothing.png": b"",
            "large.png": large.getvalue(),
            "heavy.png": b"\x89PNG" + bytes(200_000),
            "moving.gif": b"GIF89a" + bytes(50),
            "last.png": draw(2),
        },
    )
    (commit,) = label(tmp_path / "in.tar", tmp_path / "run")
    found = rows(tmp_path / "run")
    assert {key: row.error.partition(":")[0] for key, row in found.items() if row.error} == {
        "cut.jpg": "truncated",
        "text.jpg": "not_an_image",
        "nothing.png": "empty",
        "large.png": "too_large",
        "heavy.png": "too_large",
        "moving.gif": "unsupported",
    }
    assert (commit.images, commit.labelled, commit.empty, commit.quarantined) == (8, 2, 0, 6)
    assert commit.reasons == {"empty": 1, "not_an_image": 1, "too_large": 2, "truncated": 1, "unsupported": 1}


def test_a_run_from_and_to_object_storage_has_the_rows_of_a_local_one(s3_uri: str, tmp_path: Path) -> None:
    """Storage is where the images are; a run that only works on a disk works nowhere."""
    store = Store()
    for shard in range(2):
        tar = write_tar(tmp_path / f"in/{shard}.tar", {f"{shard}-{i}.png": draw(i) for i in range(6)})
        store.put(f"{s3_uri}/in/{shard}.tar", tar)
        store.put(f"{s3_uri}/loose/{shard}.png", draw(50 + shard))
    label(tmp_path / "in", tmp_path / "run")
    commits = label(f"{s3_uri}/in", f"{s3_uri}/run")
    assert sum(one.images for one in commits) == 12
    local, remote = rows(tmp_path / "run"), rows(f"{s3_uri}/run")
    assert {key: content(row) for key, row in remote.items()} == {key: content(row) for key, row in local.items()}
    label(f"{s3_uri}/loose", f"{s3_uri}/run2")
    assert sorted(rows(f"{s3_uri}/run2")) == ["0.png", "1.png"]


class RacingLabeler(ThresholdLabeler):
    """Has another worker label and commit the same shard first, whenever it is asked for labels."""

    race: Callable[[], Commit]
    first: Commit | None = None

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        self.first = self.first or self.race()
        return super().label(images)


def test_the_second_of_two_commits_yields_and_removes_its_files(tmp_path: Path) -> None:
    """Two drivers, or a worker thought dead, must not leave a shard with two sets of rows."""
    write_tar(tmp_path / "in.tar", {f"{i}.png": draw(i) for i in range(5)})
    config = LabelConfig(
        input=InputConfig(uri=str(tmp_path / "in.tar")),
        output=OutputConfig(uri=str(tmp_path / "run")),
        labeler=LabelerConfig(name="tests.fakes:ThresholdLabeler"),
    )
    store = Store()
    (planned,) = plan([str(tmp_path / "in.tar")], format="tar", images_per_shard=1, store=store)
    run = Run(id="x", uri=str(tmp_path / "run"), config=config)
    winner, loser = ThresholdLabeler(config.labeler, store), RacingLabeler(config.labeler, store)
    loser.race = partial(label_shard, planned.shard, run=run, store=store, labeler=winner)
    standing = label_shard(planned.shard, run=run, store=store, labeler=loser)
    assert standing == loser.first
    files = {f"{path.parent.name}/{path.name}" for path in (tmp_path / "run").glob("*/*.*") if path.is_file()}
    assert files == {output.path for output in standing.outputs.values()}


def test_a_shard_that_is_committed_is_not_labelled_again(tmp_path: Path) -> None:
    """Two drivers on one output would pay twice for each shard, and label both times the same."""
    write_tar(tmp_path / "in.tar", {f"{i}.png": draw(i) for i in range(5)})
    (first,) = label(tmp_path / "in.tar", tmp_path / "run")
    (tmp_path / "in.tar").unlink()
    manifest = ledger.read_manifest(Store(), str(tmp_path / "run"))
    config = LabelConfig(input=InputConfig(uri="in"), output=OutputConfig(uri=str(tmp_path / "run")))
    run = Run(id="x", uri=str(tmp_path / "run"), config=config)
    labeler = ForgetfulLabeler(config.labeler, Store())
    assert label_shard(manifest.shards[0], run=run, store=Store(), labeler=labeler) == first


def test_a_shard_that_is_cut_leaves_nothing_behind(tmp_path: Path) -> None:
    """Half a shard under a name that a reader might take for data is worse than none."""
    write_tar(tmp_path / "in.tar", {f"{i}.png": draw(i) for i in range(9)})
    data = (tmp_path / "in.tar").read_bytes()
    (tmp_path / "in.tar").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ShardError, match=r"in\.tar"):
        label(tmp_path / "in.tar", tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json", "shards"]
    assert tarfile.is_tarfile(tmp_path / "in.tar")  # it looks like one at its start


class ForgetfulLabeler(ThresholdLabeler):
    """Loses the last image of each batch."""

    def label(self, images):  # type: ignore[no-untyped-def]
        return super().label(images)[:-1]


def test_a_labeler_that_loses_an_image_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one result too few, every later mask of the batch would land on its neighbour's image."""
    write_tar(tmp_path / "in.tar", {f"{i}.png": draw(i) for i in range(5)})
    monkeypatch.setattr(f"{__name__}.ThresholdLabeler", ForgetfulLabeler)
    with pytest.raises(RunError, match="gave 3 results for 4 images"):
        label(tmp_path / "in.tar", tmp_path / "run")
