"""What the ledger of a large run costs: `python -m tests.pipeline.bench_ledger --shards 1000000 --folder DIR`.

It makes a run of simulated shards and commits on a local disk and takes the steps that a driver and `patchlabel` take,
each in a process of its own: seconds, seconds of CPU, and the largest resident size. The input's listing and the data
objects are simulated, too: the steps are those that touch nothing else than the ledger. The files are removed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import founding, ledger, plan, runs, verify
from pipeline.config import InputConfig, LabelConfig, LabelerConfig, OutputConfig
from pipeline.ledger import documents
from pipeline.records import SCHEMA_VERSION, Category, Commit, LabelerInfo, Manifest, Output, Shard
from pipeline.shard_list import ShardList
from pipeline.store import ObjectInfo, Store

LABELER = LabelerInfo(fingerprint="f" * 16, categories=(Category(id=1, name="thing"),))
IMAGES = 1000  # of a shard


class SimulatedBucket(Store):
    """A store whose one input bucket lists `count` tars; everything else is as it is."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def list(self, uri: str, *, literal: bool = False) -> Iterator[ObjectInfo]:
        if not uri.startswith("s3://bucket"):
            yield from super().list(uri, literal=literal)
            return
        for number in range(self._count):
            name = f"s3://bucket/dataset/train/part-{number // 1000:05d}/{number:08d}.tar"
            yield ObjectInfo(uri=name, bytes=1 << 28, etag=hashlib.md5(name.encode()).hexdigest())


def simulated_config(folder: Path) -> LabelConfig:
    return LabelConfig(
        input=InputConfig(uri="s3://bucket/dataset", format="tar"),
        output=OutputConfig(uri=str(folder / "run")),
        labeler=LabelerConfig(name="tests.fakes:ThresholdLabeler"),
    )


def simulated_commit(shard: Shard) -> Commit:
    random = hashlib.sha256(shard.id.encode()).hexdigest()
    paths = {"parquet": f"labels/{shard.id}-{random[:12]}.parquet", "coco": f"coco/{shard.id}-{random[:12]}.json"}
    return Commit(
        shard_id=shard.id,
        attempt=random[:12],
        outputs={
            format: Output(path=path, bytes=1 << 20, sha256=hashlib.sha256(path.encode()).hexdigest())
            for format, path in paths.items()
        },
        images=IMAGES,
        labelled=IMAGES - 13,
        empty=10,
        quarantined=3,
        instances=7 * IMAGES,
        reasons={"truncated": 2, "not_an_image": 1},
        fingerprint=LABELER.fingerprint,
        seconds=123.456,
        version="0.1.0",
    )


def simulated_manifest(folder: Path, shards: int) -> Manifest:
    config = simulated_config(folder)
    return Manifest(
        run_id="0123456789ab",
        schema_version=SCHEMA_VERSION,
        version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        config=config.labels_depend_on(),
        fingerprint="",
        categories=(),
        shards=ShardList.of(one.shard for one in founding.planned_shards(config, SimulatedBucket(shards))),
    )


def write_commits(folder: Path, manifest: Manifest) -> None:
    """The commits of all shards, straight to the disk, without the care that `Store` takes of each."""
    for number in range(256):
        (folder / "run/commits" / f"{number:02x}").mkdir(parents=True)
    for shard in manifest.shards:
        content = documents.COMMIT.dump_json(simulated_commit(shard), indent=2) + b"\n"
        Path(documents.commit_uri(str(folder / "run"), shard.id)).write_bytes(content)


# The steps, in their order. Each returns what is worth to be told.


def planning(folder: Path, shards: int) -> str:
    found = ShardList.of(
        one.shard
        for one in plan.plan(
            ["s3://bucket/dataset"], format="tar", images_per_shard=1000, store=SimulatedBucket(shards)
        )
    )
    found.write(folder / "planned.parquet")
    return f"{len(found)} shards from a simulated listing"


def found(folder: Path, shards: int) -> str:
    manifest = Manifest(
        run_id="0123456789ab",
        schema_version=SCHEMA_VERSION,
        version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        config=simulated_config(folder).labels_depend_on(),
        fingerprint="",
        categories=(),
        shards=ShardList.read(folder / "planned.parquet"),
    )
    founding.found(simulated_config(folder), manifest, LABELER, Store())
    size = sum(path.stat().st_size for path in (folder / "run").rglob("*.*"))
    return f"{size / 1e6:.1f} MB written"


def commit_all(folder: Path, shards: int) -> str:
    write_commits(folder, ledger.read_manifest(Store(), str(folder / "run")))
    return "simulated commits, written for the steps below"


def resume(folder: Path, shards: int) -> str:
    store, uri = Store(), str(folder / "run")
    manifest = ledger.read_manifest(store, uri)
    pending = ledger.pending(manifest, ledger.committed_ids(store, uri))
    return f"{len(pending)} pending"


def status(folder: Path, shards: int) -> str:
    now = runs.status(Store(), str(folder / "run"))
    assert now.done == shards
    assert now.images == IMAGES * shards == now.labelled + now.empty + now.quarantined
    return f"{now.done} done, {now.images} images"


def fold(folder: Path, shards: int) -> str:
    store, uri = Store(), str(folder / "run")
    count = ledger.fold(store, uri, ledger.read_manifest(store, uri), least=1)
    size = sum(path.stat().st_size for path in (folder / "run/folds").iterdir())
    return f"{count} folded, {size / 1e6:.1f} MB"


def verify_ledger(folder: Path, shards: int) -> str:
    report = verify.verify_ledger(Store(), str(folder / "run"))
    assert report.committed == shards
    return f"{report.committed} commits, {len(report.faults)} faults"


STEPS: dict[str, tuple[str, Callable[[Path, int], str]]] = {
    "plan": ("plan", planning),
    "found": ("found", found),
    "commit": ("", commit_all),
    "resume": ("resume (all done)", resume),
    "status": ("status, no folds", status),
    "verify": ("verify, no folds", verify_ledger),
    "fold": ("fold all", fold),
    "status-folded": ("status, folded", status),
    "verify-folded": ("verify, folded", verify_ledger),
    "fold-again": ("fold, nothing new", fold),
}


def take(step: str, folder: Path, shards: int) -> dict[str, object]:
    """Take a step in this process, and measure it."""
    start = time.perf_counter()
    told = STEPS[step][1](folder, shards)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "step": STEPS[step][0],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "told": told,
    }


def measure(step: str, folder: Path, shards: int) -> dict[str, object]:
    """Take a step in a process of its own; that of Python and the imports is counted with it."""
    command = [sys.executable, "-m", __spec__.name, "--shards", str(shards), "--folder", str(folder), "--step", step]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make the run; a new folder in it, removed at the end")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(take(options.step, options.folder, options.shards)))
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-ledger-", dir=options.folder))
    try:
        rows = []
        for step in STEPS:
            row = measure(step, folder, options.shards)
            if row["step"]:
                rows.append(row)
                print("{step:20} {seconds:8} s {cpu_seconds:8} s CPU {peak_mb:8} MB   {told}".format(**row), flush=True)
        print(json.dumps({"shards": options.shards, "steps": rows}))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
