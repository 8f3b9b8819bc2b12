"""The list of shards: as good as a tuple of them, and far smaller."""

import subprocess
import sys

import numpy as np
import pytest

from pipeline.records import Shard
from pipeline.shard_list import ShardList

SHARDS = tuple(
    Shard(id=f"{n:020x}", uri=f"s3://b/ü-{n}.tar", format="tar", bytes=n << 33, etag=f"e{n}", number=(1 << 31) - 1 - n)
    for n in range(9)
)

#: Plans, founds, reads and resumes a run of simulated shards, half of them done -> the peak of its memory in bytes.
PLAN_AND_RESUME = """
import resource, sys, tempfile
from pathlib import Path
from pipeline import ledger
from pipeline.store import Store
from tests.pipeline import bench_ledger

shards = int(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    bench_ledger.planning(Path(folder), shards)
    bench_ledger.found(Path(folder), shards)
    manifest = ledger.read_manifest(Store(), folder + "/run")
    pending = ledger.pending(manifest, {shard.id for shard in manifest.shards[::2]})
    assert len(pending) == sum(1 for shard in pending) == shards // 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture
def shards():
    return ShardList.of(iter(SHARDS))


def test_it_is_a_sequence_of_what_was_put_in(shards, tmp_path):
    """A shard whose size or number came back as another would be labelled under the ids of another."""
    shards.write(tmp_path / "a.parquet")
    for one in (shards, ShardList.read(tmp_path / "a.parquet")):
        assert tuple(one) == SHARDS
        assert one == shards == SHARDS
        assert len(one) == 9
        assert (one[0], one[-1]) == (SHARDS[0], SHARDS[-1])
        for part in (slice(None, 3), slice(4, None), slice(None, None, -2), slice(5, 2), slice(-3, -1)):
            assert tuple(one[part]) == SHARDS[part]
        assert tuple(one.take(np.array([7, 0, 7]))) == (SHARDS[7], SHARDS[0], SHARDS[7])
        with pytest.raises(IndexError):
            one[9]
    assert shards != SHARDS[:8]
    assert shards[1:3] != shards[2:4]
    assert ShardList.of(shards) is shards
    assert list(ShardList.of(())) == []


def test_what_is_done_is_left_out_in_order(shards):
    """A pending list that loses a shard, or its order."""
    done = {SHARDS[2].id, SHARDS[8].id, "f" * 20}
    assert tuple(shards.without(done)) == SHARDS[:2] + SHARDS[3:8]
    assert shards.without(()) is shards
    assert len(shards.without(shards.ids)) == 0
    assert shards.known(["f" * 20, SHARDS[2].id]) == {SHARDS[2].id}
    assert shards.known([]) == set()


def sized(sizes):
    return ShardList.of(
        Shard(id=f"{n:020x}", uri=f"{n}", format="tar", bytes=size, etag="", number=n) for n, size in enumerate(sizes)
    )


def numbers(shards):
    return [shard.number for shard in shards]


def test_large_shards_come_first_and_like_ones_keep_their_order():
    """A shard that takes ten times as long, begun last, holds up the end of a run; one that is lost is not labelled."""
    assert numbers(sized([100, 4000, 110, 70_000, 90, 3000, 90_000]).large_first()) == [3, 6, 1, 5, 0, 2, 4]
    sizes = np.random.default_rng(0).lognormal(10, 2, 1000).astype(int)
    found = sized(sizes).large_first(start=0.37)
    assert sorted(numbers(found)) == list(range(1000))
    ordered = sizes[numbers(found)]
    assert (ordered[1:] < 2 * ordered[:-1]).all()
    assert numbers(sized([]).large_first(start=0.5)) == []


def test_drivers_beside_each_other_begin_elsewhere():
    """Two that take the same shards at the same time label everything twice."""
    alike = sized([900] * 10 + [100] * 10)
    assert numbers(alike.large_first(start=0.3)) == [*range(3, 10), *range(3), *range(13, 20), *range(10, 13)]
    assert sorted(numbers(alike.large_first(start=0.999))) == list(range(20))


def test_shards_of_unknown_size_are_neither_first_nor_last():
    """A listing of images behind URLs has no sizes: among others, these might be large; among themselves, they stay."""
    assert numbers(sized([0, 10, 1000, 0, 1000, 1000, 100_000]).large_first()) == [6, 0, 2, 3, 4, 5, 1]
    assert numbers(sized([0, 0, 0]).large_first()) == [0, 1, 2]


def test_the_file_does_not_depend_on_how_the_list_was_made(shards, tmp_path):
    """Two drivers that plan the same must write the same object."""
    shards.write(tmp_path / "a")
    ShardList.of(list(SHARDS)).write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_list_stays_small():
    """A plan, or the pending part of it, that holds an object for each shard needs gigabytes at a million."""
    small, large = (
        int(subprocess.check_output([sys.executable, "-c", PLAN_AND_RESUME, str(count)], text=True))
        for count in (20_000, 120_000)
    )
    assert (large - small) / 100_000 < 800, "bytes a shard; a million of them have to fit into 1 GB"
