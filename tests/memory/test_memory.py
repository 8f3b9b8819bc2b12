"""What a worker holds: nothing of the shards that it is done with, and no more ahead than it was told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.records import Shard
from pipeline.store import Store
from tests.fakes import draw
from tests.memory.inputs import FORMATS, Inputs, large_pictures
from tests.memory.shift import Done, Shift

IMAGES, WARM_UP, ROUNDS = 22, 3, 7
#: Bytes that a worker may keep of an image. What is measured moves by less than one, whatever the machine is busy with.
LEAST = 10


def write_config(folder: Path, labeler: Mapping[str, object], **sections: Mapping[str, object]) -> Path:
    raw = {"input": {"uri": str(folder)}, "output": {"uri": str(folder)}, "labeler": labeler, **sections}
    path = folder / "label.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def cut(shard: Shard) -> Shard:
    """The first half of a shard, a tar."""
    path = Path(shard.uri)
    path.write_bytes(path.read_bytes()[: shard.bytes // 2])
    info = Store().stat(shard.uri)
    return Shard(id=shard.id, uri=shard.uri, format="tar", bytes=info.bytes, etag=info.etag, number=shard.number)


def kept_per_image(folder: Path, labeler: str, *, isolate: bool = False) -> float:
    """Bytes that a worker keeps of an image, by the median of rounds: a shard of each kind, one that cannot be read."""
    pictures = {f"{i}.png": draw(i) for i in range(10)} | {"text.jpg": b"this is no image"}
    names = [list(pictures)[i % len(pictures)] for i in range(IMAGES)]
    inputs = Inputs(str(folder), Store(), pictures)
    config = write_config(folder, {"name": labeler}, limits={"isolate_decoding": isolate})
    rounds: list[Done] = []
    with Shift(config, exact=True) as shift:
        for number in range(WARM_UP + ROUNDS):
            shards = [inputs.make(4 * number + i, format, names) for i, format in enumerate(FORMATS)]
            done = [shift.label(shard) for shard in shards]
            assert [(one.images, one.quarantined) for one in done] == [(IMAGES, 2)] * len(FORMATS)
            rounds.append(shift.label(cut(inputs.make(4 * number + 3, "tar", names))))
            assert rounds[-1].images == 0
    before, after = rounds[WARM_UP - 1].reading, rounds[-1].reading
    assert after.files < before.files + ROUNDS
    assert after.threads < before.threads + ROUNDS
    held = [one.reading.allocated for one in rounds[WARM_UP - 1 :]]
    return float(np.median(np.diff(held))) / ((len(FORMATS) + 1) * IMAGES)  # whatever comes once is no leak


@pytest.mark.parametrize("isolate", [False, True])
def test_a_worker_keeps_nothing_of_what_it_labelled(isolate: bool, tmp_path: Path) -> None:
    """Workers that are killed for their memory after a million images, on shards that have done nothing wrong."""
    assert kept_per_image(tmp_path, "tests.fakes:ThresholdLabeler", isolate=isolate) < LEAST


def test_a_leak_is_seen(tmp_path: Path) -> None:
    """The test above would pass whatever a worker keeps, if what it measures were blind."""
    assert kept_per_image(tmp_path, "tests.fakes:KeepingLabeler") > 2 * LEAST


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_prefetch_is_bounded_in_bytes(format: str, tmp_path: Path) -> None:
    """A worker that takes sixteen photographs where its node has room for two, because sixteen icons would fit."""
    pictures = large_pictures(np.random.default_rng(3))
    decoded = 3 * 12_000_000
    inputs = Inputs(str(tmp_path), Store(), pictures)
    peaks = []
    for number, prefetch in enumerate((100_000_000, 2_000_000_000)):
        labeler = {"name": "tests.fakes:SlowLabeler", "batch_size": 8}
        config = write_config(tmp_path, labeler, run={"prefetch_bytes": prefetch})
        shard = inputs.make(number, format, [list(pictures)[i % 2] for i in range(32)])
        with Shift(config) as shift:
            before = shift.start.rss
            done = shift.label(shard)
        assert (done.images, done.quarantined) == (32, 0)
        peaks.append(done.reading.peak - before)
    assert peaks[0] < peaks[1] - 4 * decoded  # some 2 of the 16 images ahead are held
