"""A worker that is cut off, is given up, and writes late: `python -m tests.chaos.zombie` shows what becomes of it.

Its node's cable is pulled while it holds a shard, which another worker then does. In the first story it finishes after
that: its claim must lose, and it takes its own files away. In the second it is killed with its files in storage, before
it could claim: they are orphans, which nobody reads and `patchlabel gc` removes. It takes root, for the cable.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.chaos import nodes as cluster
from tests.chaos.inputs import Drawn
from tests.chaos.nodes import REPOSITORY, Nodes
from tests.chaos.outside import Found, judge
from tests.fakes import draw, write_tar

SHARDS, IMAGES = 3, 6
PATIENCE_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What a run's folder holds: the attempt that each shard is committed by, and all data objects."""

    commits: Mapping[str, bytes]
    objects: frozenset[str]

    @classmethod
    def of(cls, run: Path) -> Ledger:
        return cls(
            commits={path.stem: path.read_bytes() for path in sorted(run.glob("commits/*/*.json"))},
            objects=frozenset(
                f"{folder}/{path.name}" for folder in ("labels", "coco") for path in (run / folder).glob("[0-9a-f]*")
            ),
        )

    @property
    def orphans(self) -> list[str]:
        """The objects that no commit names."""
        named = {output["path"] for text in self.commits.values() for output in json.loads(text)["outputs"].values()}
        return sorted(self.objects - named)

    def show(self, when: str) -> None:
        print(f"\n{when}:")
        for shard, text in self.commits.items():
            print(f"    commit {shard}: attempt {json.loads(text)['attempt']}")
        for orphan in self.orphans:
            print(f"    no commit names {orphan}")


class Story:
    """A run of which one worker, on a node of its own, is held at the red image."""

    def __init__(self, nodes: Nodes, folder: Path, labeler: str) -> None:
        self.nodes, self.run, self._held = nodes, folder / "run", folder / "held"
        images: dict[str, str | None] = {}
        for shard in range(SHARDS):
            files = {f"{shard}-{i}.png": draw(10 * shard + i, poison=(shard, i) == (1, 2)) for i in range(IMAGES)}
            write_tar(folder / f"tars/{shard}.tar", files)
            images |= dict.fromkeys(files)
        self.drawn = Drawn(folder=folder, shards=SHARDS, images=images, per_shard=IMAGES, settings={})
        config = {
            "input": {"uri": f"{folder}/tars/"},
            "output": {"uri": str(self.run)},
            "labeler": {"name": f"tests.fakes:{labeler}", "weights": str(folder), "batch_size": 2},
            "run": {"address": nodes.address, "workers": 1, "cpus_per_worker": 1, "max_attempts": 1},
        }
        (folder / "label.yaml").write_text(yaml.safe_dump(config))
        self._log = folder / "driver.log"
        self._released = folder / "released"

    def until_the_zombie_is_alone(self) -> tuple[int, Ledger]:
        """Cut the worker off while it is held, let another one do its shard -> its process, and the ledger then."""
        for node in [*self.nodes.alive]:
            self.nodes.lose(node)
        self.nodes.fleet(plain=0, isolated=1)
        (node,) = self.nodes.alive
        command = [sys.executable, "-m", "jobs.label", "--config", str(self.run.parent / "label.yaml")]
        with self._log.open("wb") as log:
            driver = subprocess.Popen(
                command, cwd=REPOSITORY, env=self.nodes.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            _wait_for(lambda: self._held.exists() and self._held.read_text(), "a worker that is held")
            zombie = int(self._held.read_text())
            Ledger.of(self.run).show(f"worker {zombie} holds a shard, and its node is cut off")
            cluster.cut(node)
            self.nodes.alive.remove(node)
            self.nodes.join()
            _wait_for(lambda: driver.poll() is not None, "the end of the run")
        finally:
            driver.kill()
        print(f"\nthe driver, which exits with {driver.wait()}:")
        print(*(f"    {line}" for line in self._log.read_text().splitlines()), sep="\n")
        if driver.returncode or zombie not in cluster.actors([node]):
            raise SystemExit(f"the driver ended with {driver.returncode}; the zombie is among {cluster.actors([node])}")
        return zombie, Ledger.of(self.run)

    def release(self) -> frozenset[str]:
        """Let the zombie finish -> the objects that it wrote and took away again."""
        before, seen = Ledger.of(self.run).objects, set[str]()
        self._released.touch()

        def came_and_went() -> bool:
            now = Ledger.of(self.run).objects - before
            seen.update(now)
            return bool(seen) and not now

        _wait_for(came_and_went, "what the zombie writes", every=0.001)
        return frozenset(seen)

    def judged(self) -> Found:
        return judge(self.run, self.drawn, None)


def finishes_late(nodes: Nodes, folder: Path) -> list[str]:
    """The first story -> what went wrong."""
    story = Story(nodes, folder, "HeldLabeler")
    zombie, before = story.until_the_zombie_is_alone()
    before.show("the run is done, and the zombie still at its image")
    came = story.release()
    after, found = Ledger.of(story.run), story.judged()
    after.show(f"zombie {zombie} has finished: it wrote {', '.join(sorted(came))}, claimed, lost, and took them away")
    faults = list(found.faults)
    if after.commits != before.commits:
        faults.append("a commit is another one than before")
    if after.orphans:
        faults.append(f"orphans are left: {after.orphans}")
    return faults


def dies_before_its_claim(nodes: Nodes, folder: Path) -> list[str]:
    """The second story -> what went wrong."""
    story = Story(nodes, folder, "HeldAtTheClaimLabeler")
    zombie, before = story.until_the_zombie_is_alone()
    before.show("the run is done, and the zombie's files are there, unclaimed")
    cluster.kill(zombie)
    faults = list(story.judged().faults)
    if len(before.orphans) != 2:
        faults.append(f"a Parquet and a COCO file should be orphans, not {before.orphans}")
    gc = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "gc", str(story.run), "--older-than", "0s"],
        cwd=REPOSITORY, env=nodes.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(f"\nzombie {zombie} is killed; patchlabel gc --older-than 0s, which exits with {gc.returncode}:")
    print(*(f"    {line}" for line in (gc.stdout + gc.stderr).splitlines()), sep="\n")
    after = Ledger.of(story.run)
    after.show("after that")
    if gc.returncode or after.orphans or after.commits != before.commits:
        faults.append(f"gc exits with {gc.returncode}, and leaves {after.orphans}")
    return faults + story.judged().faults


STORIES: tuple[Callable[[Nodes, Path], list[str]], ...] = (finishes_late, dies_before_its_claim)


def _wait_for(happens: Callable[[], object], what: str, every: float = 0.1) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come within {PATIENCE_S:.0f} s")
        time.sleep(every)


def main() -> int:
    """Tell both stories."""
    faults = []
    with ExitStack() as stack:
        nodes = stack.enter_context(Nodes({}, can_isolate=True))
        if not nodes.can_isolate:
            raise SystemExit("cutting a node off takes root")
        for story in STORIES:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zombie-")))
            print(f"\n== {story.__name__.replace('_', ' ')} ==")
            faults += story(nodes, folder)
    print("\nfaults:", *faults or ["none"], sep="\n    ")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
