"""The ledger of a training on local disk and on an S3 server."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import checkpoints
from pipeline.errors import AccessError, RunError, StoreError, UnreachableError
from pipeline.store import Store, join

WEIGHTS = bytes(range(256)) * 1000
NAMES = ("model.pth", "state.pth")


@pytest.fixture
def root(place):
    return join(place, "name [1]*")  # a user may call a training so


@pytest.fixture
def local(tmp_path):
    return str(tmp_path / "training")


def save(store, root, step, figure=None, content=WEIGHTS):
    return checkpoints.save(
        store,
        root,
        step=step,
        files={"model.pth": content + str(step).encode(), "state.pth": b"state %d" % step},
        history=[{"step": float(done), "loss": 1 / done} for done in range(100, step + 1, 100)],
        metrics={} if figure is None else {"val mask AP": figure},
        provenance={"workers": 2, "data": ["coco"]},
    )


def steps(store, root):
    return [one.step for one in checkpoints.saved(store, root)]


def data(store, root):
    """The data folders that hold anything, as `step-attempt`."""
    base = join(root, "checkpoints", "")
    paths = (info.uri.removeprefix(base) for info in store.list(base, literal=True))
    return sorted({path.split("/")[0] for path in paths if "/" in path})


def uri_of(root, saved, file_name):
    return join(root, "checkpoints", f"{saved.step:08d}-{saved.attempt}", file_name)


def test_round_trip(store, root, tmp_path_factory):
    """A resumed training does not go on from other weights, another curve or another step than it left."""
    folder = tmp_path_factory.mktemp("fetched")
    assert checkpoints.saved(store, root) == ()
    assert checkpoints.restore(store, root, NAMES, folder) is None
    model = folder / "written"
    model.write_bytes(WEIGHTS)
    second = checkpoints.save(store, root, step=400, files={"model.pth": model, "state.pth": b"s"}, metrics={"AP": 0.5})
    first = checkpoints.save(store, join(root, "other"), step=200, files={"state.pth": b"other"})
    assert checkpoints.saved(store, root) == (second,)
    assert checkpoints.saved(store, join(root, "other")) == (first,)
    assert second.metrics == {"AP": 0.5}
    assert second.files["model.pth"].size == len(WEIGHTS)
    found, paths = checkpoints.restore(store, root, NAMES, folder / "new/folder")
    assert found == second
    assert paths == {file_name: folder / "new/folder" / file_name for file_name in NAMES}
    assert (paths["model.pth"].read_bytes(), paths["state.pth"].read_bytes()) == (WEIGHTS, b"s")
    assert sorted(path.name for path in (folder / "new/folder").iterdir()) == sorted(NAMES)


def test_history(store, local):
    """A curve that holds what is no number comes back as it was, and its file is JSON for other tools, too."""
    rows = [{"step": 20.0, "loss": 0.1 + 0.2}, {"step": 40.0, "loss": math.inf, "val mask AP": math.nan}]
    saved = checkpoints.save(store, local, step=40, files={}, history=rows, metrics={"AP": math.nan})
    assert repr(checkpoints.read_history(store, local, saved)) == repr(rows)
    assert repr(checkpoints.saved(store, local)) == repr((saved,))
    for text in (store.get(uri_of(local, saved, "history.json")), store.get(join(local, "checkpoints/00000040.json"))):
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_marker_can_be_read_by_people(store, tmp_path):
    """Somebody who looks into the folder finds out what the checkpoint is."""
    saved = save(store, str(tmp_path), 600, figure=0.25)
    marker = json.loads((tmp_path / "checkpoints/00000600.json").read_text())
    assert (marker["step"], marker["metrics"], marker["provenance"]["workers"]) == (600, {"val mask AP": 0.25}, 2)
    for file_name, file in marker["files"].items():
        path = tmp_path / f"checkpoints/00000600-{saved.attempt}" / file_name
        assert path.stat().st_size == file["size"]
    assert set(marker["files"]) == {"model.pth", "state.pth", "history.json"}


def test_weights_never_fill_the_memory(store, tmp_path):
    """Weights of a gigabyte are not held in memory by the process that saves them, or that fetches them."""
    model = tmp_path / "written"
    with model.open("wb") as file:
        file.truncate(32 << 20)
    tracemalloc.start()
    saved = checkpoints.save(store, str(tmp_path / "root"), step=1, files={"model.pth": model})
    checkpoints.fetch(store, str(tmp_path / "root"), saved, "model.pth", tmp_path / "fetched")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "fetched/model.pth").stat().st_size == 32 << 20
    assert peak < 12 << 20


def test_file_uri(store, tmp_path):
    """A training that is named by a file:// URI finds its own checkpoints, and removes old ones."""
    root = (tmp_path / "a b").as_uri()
    for step in (100, 200):
        save(store, root, step)
    checkpoints.prune(store, root, keep=1)
    assert steps(store, root) == [200]
    assert sorted(path.name[:8] for path in (tmp_path / "a b/checkpoints").iterdir()) == ["00000200", "00000200"]


def test_racing_writers(store, root, tmp_path_factory):
    """Of several trainings that reach a step, not two believe that it is theirs, and weights of two are not mixed."""
    for step in (100, 200, 300):
        barrier = threading.Barrier(4)

        def race(number, step=step, barrier=barrier):
            files = {file_name: b"%s of %d" % (file_name.encode(), number) for file_name in NAMES}
            barrier.wait(10)
            try:
                return checkpoints.save(store, root, step=step, files=files, metrics={"writer": number})
            except checkpoints.TakenError as error:
                return str(error)

        with ThreadPoolExecutor(4) as threads:
            ended = list(threads.map(race, range(4)))
        (won,) = (one for one in ended if not isinstance(one, str))
        assert checkpoints.saved(store, root)[-1] == won
        folder = tmp_path_factory.mktemp("fetched")
        for file_name in NAMES:
            path = checkpoints.fetch(store, root, won, file_name, folder)
            assert path.read_text() == f"{file_name} of {won.metrics['writer']:.0f}"
        lost = f"checkpoint {step} of {root} was written by another training at the same time"
        assert sorted(one for one in ended if isinstance(one, str)) == [lost] * 3
    assert [folder[:8] for folder in data(store, root)] == ["00000100", "00000200", "00000300"]


@pytest.mark.parametrize("kept", [1, 2])
def test_a_training_left_behind_gives_way(store, local, kept):
    """A training that was thought dead neither brings back a step that was removed, nor goes on unnoticed."""
    for step in (200, 400):
        save(store, local, step)
    checkpoints.prune(store, local, keep=kept)
    before = data(store, local)
    sentence = "checkpoint 400 of .* was written by another training while this one was at 300"
    with pytest.raises(RunError, match=sentence):
        save(store, local, 300)
    assert steps(store, local) == [200, 400][-kept:]
    assert data(store, local) == before


@pytest.mark.parametrize("when", ["before its marker", "after its marker"])
def test_prune_takes_no_data_that_is_about_to_be_marked(local, when):
    """What a writer far behind marks at the very moment of a clean-up does not become a checkpoint without data."""
    ahead = Store()

    class Slow(Store):
        def create(self, uri, data):
            if when == "before its marker":
                overtaken()
            done = super().create(uri, data)
            if when == "after its marker":
                overtaken()
            return done

    def overtaken():
        save(ahead, local, 600)
        checkpoints.prune(ahead, local, keep=5)

    with pytest.raises(checkpoints.TakenError, match="checkpoint 600"):
        save(Slow(), local, 400)
    assert steps(ahead, local) == [600]
    checkpoints.prune(ahead, local, keep=5)
    assert [folder[:8] for folder in data(ahead, local)] == ["00000600"]


DIES = """
import os, signal, sys
from pipeline import checkpoints
from pipeline.store import Store

class Dying(Store):
    def create(self, uri, data):
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.save(Dying(), sys.argv[1], step=600, files={"model.pth": b"half", "state.pth": b"half"})
"""


def test_killed_between_data_and_marker(store, root, tmp_path_factory):
    """A checkpoint whose writer died is not gone on from, does not stand in the way of the next, and does not stay."""
    before = save(store, root, 400)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", DIES, root], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [folder[:8] for folder in data(store, root)] == ["00000400", "00000600"]
    found, _ = checkpoints.restore(store, root, NAMES, tmp_path_factory.mktemp("fetched"))
    assert found == before
    checkpoints.prune(store, root, keep=2)
    assert len(data(store, root)) == 2  # for all we know its writer lives and is about to mark it
    after = save(store, root, 600)
    checkpoints.prune(store, root, keep=2)
    assert data(store, root) == [f"00000400-{before.attempt}", f"00000600-{after.attempt}"]


DAMAGE = {
    "cut off": ("it has 8 bytes instead of 9", lambda content: content[:-1]),
    "longer": ("it has more bytes instead of 9", lambda content: content + b"x"),
    "changed": ("its sha256 differs", lambda content: b"x" + content[1:]),
    "gone": ("is missing", None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_data(store, root, tmp_path_factory, damage):
    """Weights that are not those that were saved are not gone on from; the checkpoint before is, to the same end."""
    folder, before, newest = tmp_path_factory.mktemp("fetched"), save(store, root, 400), save(store, root, 600)
    uri = uri_of(root, newest, "state.pth")
    content = store.get(uri)
    store.delete(uri)
    if damage != "gone":
        store.put(uri, DAMAGE[damage][1](content))
    with pytest.raises(checkpoints.DamagedError) as caught:
        checkpoints.fetch(store, root, newest, "state.pth", folder)
    assert str(caught.value).startswith(uri)
    assert DAMAGE[damage][0] in str(caught.value)
    assert list(folder.iterdir()) == []
    found, paths = checkpoints.restore(store, root, NAMES, folder)
    assert (found, paths["state.pth"].read_bytes()) == (before, b"state 400")
    assert paths["model.pth"].read_bytes().endswith(b"400")
    again = save(store, root, 600)
    assert checkpoints.restore(store, root, NAMES, folder)[0] == again


@pytest.mark.parametrize("marker", [b"", b'{"step": 600', b"[]", b"\xff", None], ids=repr)
def test_damaged_marker(store, local, tmp_path_factory, marker):
    """A marker that was cut off or changed by hand does not stop a training that has another checkpoint."""
    before, newest = save(store, local, 400), save(store, local, 600)
    uri = join(local, "checkpoints/00000600.json")
    store.put(uri, store.get(uri).replace(newest.attempt.encode(), b"../elsewhere") if marker is None else marker)
    assert checkpoints.saved(store, local) == (before,)
    checkpoints.prune(store, local, keep=1)
    assert len(data(store, local)) == 2  # it is not for a clean-up to judge a later one
    assert store.exists(uri)
    found, _ = checkpoints.restore(store, local, NAMES, tmp_path_factory.mktemp("fetched"))
    assert found == before
    save(store, local, 600)
    assert steps(store, local) == [400, 600]


def test_nothing_whole(store, local, tmp_path_factory):
    """A training of days whose checkpoints were all spoilt does not begin from the first step in silence."""
    for step in (400, 600):
        store.delete(uri_of(local, save(store, local, step), "model.pth"))
    with pytest.raises(StoreError, match="holds no checkpoint that is whole; remove the folder to"):
        checkpoints.restore(store, local, NAMES, tmp_path_factory.mktemp("fetched"))
    assert steps(store, local) == [400, 600]


def test_an_outage_is_no_damage(store, local, tmp_path_factory):
    """A checkpoint is not given up because the storage does not answer for a minute."""

    class Failing(Store):
        def open(self, uri, **options):
            if uri.endswith("state.pth"):
                raise UnreachableError(f"{uri}: does not answer")
            return super().open(uri, **options)

    for step in (400, 600):
        save(store, local, step)
    with pytest.raises(UnreachableError):
        checkpoints.restore(Failing(), local, NAMES, tmp_path_factory.mktemp("fetched"))
    assert steps(store, local) == [400, 600]


def test_a_disk_that_cannot_take_it(store, tmp_path):
    """A full or missing local disk is told in a sentence, and is no reason to give a checkpoint up."""
    saved = save(store, str(tmp_path), 400)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"model\.pth could not be copied to .*file: ") as caught:
        checkpoints.fetch(store, str(tmp_path), saved, "model.pth", tmp_path / "file")
    assert not isinstance(caught.value, checkpoints.DamagedError)
    with pytest.raises(checkpoints.DamagedError, match=r"has no curve\.png"):
        checkpoints.fetch(store, str(tmp_path), saved, "curve.png", tmp_path)


@pytest.mark.parametrize(
    ("keep", "metric", "stay"),
    [
        (1, None, [500]),
        (2, None, [400, 500]),
        (9, None, [100, 200, 300, 400, 500]),
        (1, "val mask AP", [300, 500]),
        (3, "val mask AP", [300, 400, 500]),
        (1, "val box AP", [500]),
    ],
)
def test_prune(store, local, keep, metric, stay):
    """Neither do old checkpoints fill the storage, nor is one of the last or the best one lost."""
    for step, figure in ((100, 0.3), (200, 0.1), (300, 0.3), (400, math.nan), (500, None)):
        save(store, local, step, figure=figure)
    for _ in range(2):
        checkpoints.prune(store, local, keep=keep, best_metric=metric)
        assert steps(store, local) == stay
        assert [int(folder[:8]) for folder in data(store, local)] == stay


def test_prune_leaves_no_empty_folders(store, tmp_path):
    """A folder of a long training can be looked through: on a disk, too, what was removed leaves nothing."""
    for step in (100, 200, 300):
        save(store, str(tmp_path), step)
    checkpoints.prune(store, str(tmp_path), keep=1)
    assert sorted(path.name[:8] for path in (tmp_path / "checkpoints").iterdir()) == ["00000300"] * 2


def test_foreign_files(store, local, tmp_path_factory):
    """What a user put beside the checkpoints, copies of them included, is neither taken for one nor removed."""
    old = save(store, local, 100)
    foreign = [
        "checkpoints/notes.txt",
        "checkpoints/1.json",
        "checkpoints/best.json",
        "checkpoints/00000900.json.bak",
        "checkpoints/00000050-mine/model.pth",
        "checkpoints/backup/00000800.json",
        f"checkpoints/backup/00000100-{old.attempt}/model.pth",
        f"00000100-{old.attempt}/model.pth",
        "model.pth",
    ]
    for path in foreign:
        store.put(join(local, path), b"{}")
    for step in (200, 300):
        save(store, local, step)
    checkpoints.prune(store, local, keep=1)
    assert steps(store, local) == [300]
    assert all(store.exists(join(local, path)) for path in foreign)
    assert checkpoints.restore(store, local, NAMES, tmp_path_factory.mktemp("fetched"))[0].step == 300


@pytest.mark.parametrize("deletions", range(10))
def test_killed_while_pruning(store, local, tmp_path_factory, deletions):
    """Whenever a clean-up breaks off, each checkpoint that is left is whole, and the next clean-up ends the work."""

    class Dying(Store):
        left = deletions

        def delete(self, uri):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            super().delete(uri)

    for step in (100, 200, 300):
        save(store, local, step)
    try:
        checkpoints.prune(Dying(), local, keep=1)
    except KeyboardInterrupt:
        assert deletions < 8
    for one in checkpoints.saved(store, local):
        for file_name in one.files:
            checkpoints.fetch(store, local, one, file_name, tmp_path_factory.mktemp("fetched"))
    checkpoints.prune(store, local, keep=1)
    assert [folder[:8] for folder in data(store, local)] == ["00000300"]


def test_where_nothing_may_be_deleted(store, local, caplog):
    """A training into a bucket that forbids deleting keeps everything, and goes on."""

    class Locked(Store):
        def delete(self, uri):
            raise AccessError(f"{uri}: access was refused")

    for step in (100, 200):
        save(store, local, step)
    checkpoints.prune(Locked(), local, keep=1)
    assert "old checkpoints stay" in caplog.text
    with pytest.raises(checkpoints.TakenError, match="checkpoint 200"):
        save(Locked(), local, 200)
    assert steps(store, local) == [100, 200]


def test_best():
    """The checkpoint that is kept as the best is not an unmeasured one, nor one of which nothing is known."""

    def one(step, **metrics):
        return checkpoints.Saved(
            step=step, attempt="0" * 12, metrics=metrics, files={}, created="", version="", provenance={}
        )

    several = [one(1, ap=0.2), one(2, ap=0.4), one(3, ap=0.4), one(4, ap=math.nan), one(5, ap=0.1, box=9.0), one(6)]
    assert checkpoints.best(several, "ap").step == 3
    assert checkpoints.best(several, "other") is None
    assert checkpoints.best([], "ap") is None
    assert checkpoints.best([one(1, ap=math.nan)], "ap") is None
