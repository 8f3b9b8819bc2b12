"""The stages of a worker, which go on at the same time, for a shard and from one shard to the next."""

from __future__ import annotations

import dataclasses
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from PIL import Image

from pipeline import runs
from pipeline.labelers import staged
from pipeline.records import Pixels
from pipeline.store import Store
from pipeline.verify import verify
from pipeline.worker import Run, Worker
from tests.fakes import ThresholdLabeler, draw, write_tar
from tests.small_runs import config_of, found_run

PATIENCE_S = 60


@dataclass(frozen=True)
class Prepared:
    pixels: Pixels
    red: int  # of the first pixel, by which tests tell images apart

    @property
    def like(self):
        return self.pixels.shape

    @property
    def nbytes(self):
        return self.pixels.nbytes


class StagedThreshold(ThresholdLabeler):
    """In steps, which tests watch and hold up."""

    watch = staticmethod(lambda step, reds: None)

    def prepare(self, image, size=None):
        self.watch("prepare", [int(image[0, 0, 0])])
        return Prepared(image, int(image[0, 0, 0]))

    def find(self, batch):
        self.watch("find", [one.red for one in batch])
        assert len({one.like for one in batch}) == 1
        return batch

    def encode(self, found):
        self.watch("encode", [one.red for one in found])
        return [self._label(one.pixels) for one in found]

    def label(self, images):
        return self.encode([Prepared(image, 0) for image in images])


class Meeting:
    """Steps that some others wait for."""

    def __init__(self, waits):
        """`waits`: (step, image) -> the (step, image) that must have begun before it goes on."""
        self.waits, self.begun, self.ended, self.changed = waits, [], [], threading.Condition()

    def wait_for(self, step):
        with self.changed:
            assert self.changed.wait_for(lambda: step in self.begun, PATIENCE_S), f"{step} does not begin"

    def __call__(self, step, reds):
        with self.changed:
            self.begun += [(step, red) for red in reds]
            self.changed.notify_all()
            for red in reds:
                other = self.waits.get((step, red))
                met = other is None or self.changed.wait_for(lambda other=other: other in self.begun, PATIENCE_S)
                assert met, f"{step} of {red} does not overlap with {other}"
            self.ended += [(step, red) for red in reds]


def picture(red: int, *, tall: bool = False) -> bytes:
    """A PNG whose first pixel has so much red."""
    size = {"width": 32, "height": 48} if tall else {}
    image = Image.open(io.BytesIO(draw(red, **size)))
    image.putpixel((0, 0), (red, 0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def worker(tmp_path):
    """A worker with batches of two, and the run that it works for: two shards of six images, of red 0..5, 10..15."""
    for number in range(2):
        images = {f"{red}.png": picture(red) for red in range(10 * number, 10 * number + 6)}
        write_tar(tmp_path / f"in/{number}.tar", images)
    config = config_of(str(tmp_path / "in"), str(tmp_path / "out"))
    config = dataclasses.replace(
        config, labeler=dataclasses.replace(config.labeler, name="tests.pipeline.test_overlap:StagedThreshold")
    )
    manifest, _ = found_run(Store(), config)
    return Worker(config), Run(id=manifest.run_id, uri=config.output.uri, config=config), manifest.shards


def label_both(worker, monkeypatch, waits):
    """Label the two shards at once, the first one first -> their commits, and the steps as they ended."""
    meeting = Meeting(waits)
    monkeypatch.setattr(StagedThreshold, "watch", staticmethod(meeting))
    works, run, shards = worker
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(works.label, shards[0], run, 0)
        meeting.wait_for(("prepare", 0))
        second = threads.submit(works.label, shards[1], run, 0)
        return [first.result(), second.result()], meeting.ended


@pytest.mark.parametrize(
    "waits",
    [
        {("find", 0): ("prepare", 2)},  # decoding, for the model
        {("encode", 0): ("find", 2)},  # the model, for the encoder
        {("find", 4): ("prepare", 10)},  # reading, for the next shard
        {("encode", 4): ("find", 10)},  # the model, for the end of a shard
    ],
    ids=["decoding ahead", "encoding behind", "reading the next shard", "finishing the last shard"],
)
def test_stages_overlap(worker, monkeypatch, waits):
    """A GPU that waits for the disk, or for the masks of the last batch."""
    commits, _ = label_both(worker, monkeypatch, waits)
    assert [commit.images for commit in commits] == [6, 6]
    run = worker[1]
    assert verify(Store(), run.uri).faults == ()


def test_shards_take_turns(worker, monkeypatch):
    """Two shards in one model at once: twice the memory, and neither is done sooner."""
    start = time.monotonic()
    commits, ended = label_both(worker, monkeypatch, {("find", 4): ("prepare", 15)})
    elapsed = time.monotonic() - start
    found = [red for step, red in ended if step == "find"]
    assert found == [*range(6), *range(10, 16)]
    assert 0 < sum(commit.seconds for commit in commits) <= elapsed + 0.002  # or a GPU would be paid for twice


def test_a_shard_that_fails_lets_the_next_one_through(worker, monkeypatch):
    """A worker that stands still behind a shard that it has given up."""
    works, run, shards = worker

    def fail(step, reds):
        if step == "encode" and 0 in reds:
            raise RuntimeError("no such mask")

    monkeypatch.setattr(StagedThreshold, "watch", staticmethod(fail))
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(works.label, shard, run, 0) for shard in shards)
        with pytest.raises(RuntimeError, match="no such mask"):
            first.result()
        assert second.result().images == 6


def test_rows_are_in_the_order_of_the_images(tmp_path, monkeypatch):
    """Masks on a neighbour's row, or rows out of order, where images of several shapes are batched with their like."""
    batches = []
    monkeypatch.setattr(
        StagedThreshold, "watch", staticmethod(lambda step, reds: step == "find" and batches.append(reds))
    )
    images = {f"{red:02d}.png": picture(red, tall=red % 3 == 1) for red in range(12)} | {"05.png": b"no image"}
    write_tar(tmp_path / "in/0.tar", dict(sorted(images.items())))
    rows = {}
    for name in ("tests.pipeline.test_overlap:StagedThreshold", "tests.fakes:ThresholdLabeler"):
        config = config_of(str(tmp_path / "in"), str(tmp_path / name.rpartition(":")[2]))
        config = dataclasses.replace(config, labeler=dataclasses.replace(config.labeler, name=name))
        manifest, _ = found_run(Store(), config)
        run = Run(id=manifest.run_id, uri=config.output.uri, config=config)
        Worker(config).label(manifest.shards[0], run, 0)
        rows[name] = [
            (row.key, row.image_id, row.status, row.height, row.width, row.instances.counts)
            for row in runs.read_rows(Store(), config.output.uri)
        ]
    staged_rows, plain_rows = rows.values()
    assert [key for key, *_ in staged_rows] == sorted(images)
    assert staged_rows == plain_rows
    assert sum(len(counts) for *_, counts in staged_rows) > 12
    assert max(map(len, batches)) == 2
    assert [1, 4] in batches


def test_a_label_of_its_own_is_called(store):
    """A class derived from one with steps, whose own way of labeling is passed over."""

    class Own(StagedThreshold):
        def label(self, images):
            return super().label(images)[::-1]

    config = config_of("in", "out").labeler
    assert staged(Own(config, store)).find is not StagedThreshold.find
    assert type(staged(Own(config, store))) is not Own
    assert type(staged(StagedThreshold(config, store))) is StagedThreshold
