"""A worker in a process of its own, which is given shard after shard and says what it holds after each.

python -m tests.memory.shift CONFIG [exact]     out: a `Reading`; then a line in, a shard, for each line out, a `Done`
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.config import LabelConfig, load
from pipeline.errors import ShardError
from pipeline.records import Commit, Shard
from pipeline.worker import Run, Worker
from tests.memory import gauge
from tests.memory.gauge import Reading

REPOSITORY = Path(__file__).resolve().parents[2]
_EVERY_S = 0.1
_EXACT = {
    "PYTHONMALLOC": "malloc",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A shard that was labelled, or could not be read (0 images).

    Counts, seconds of CPU, what the worker held afterwards, the shard's files in the run.
    """

    images: int
    instances: int
    quarantined: int
    cpu_s: float
    reading: Reading
    outputs: list[str]


class Shift:
    """The parent's side: a context manager, which also watches the child's resident size.

    Args:
        config: of a labeling run, as YAML.
        exact: let all that is allocated come from malloc, and have garbage and Python's own caches removed before
            each reading, so that `Reading.allocated` tells a few bytes.

    Attributes:
        start: what it holds before its first shard.
        seen: (seconds on this process's clock, resident bytes of the child), some 10 a second.
    """

    def __init__(self, config: Path, *, exact: bool = False) -> None:
        self.seen: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.memory.shift", str(config), *(["exact"] if exact else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | (_EXACT if exact else {}),
        )
        self._watch = threading.Thread(target=self._look)
        self.start = Reading(**self._answer())

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._over.set()
        if kind is not None:
            self._process.kill()
        self._process.communicate()
        self._watch.join()

    def label(self, shard: Shard) -> Done:
        """Have a shard labelled.

        Raises:
            RuntimeError: the worker died.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(shard)) + "\n")
        self._process.stdin.flush()
        raw = self._answer()
        return Done(**(raw | {"reading": Reading(**raw["reading"])}))

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the worker ended with exit status {self._process.wait()}; its words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _look(self) -> None:
        while not self._over.wait(_EVERY_S):
            try:
                self.seen.append((time.monotonic(), gauge.resident(self._process.pid)))
            except (OSError, IndexError):  # it is no more
                return


def _work(config: LabelConfig, exact: bool) -> None:
    worker = Worker(config)
    print(json.dumps(asdict(gauge.read())), flush=True)
    run = Run(id="0123456789ab", uri=config.output.uri, config=config)
    for line in sys.stdin:
        shard = Shard(**json.loads(line))
        before = time.process_time()
        try:
            commit: Commit | None = worker.label(shard, run, 0)
        except ShardError:
            commit = None
        cpu_s = time.process_time() - before
        if exact:
            gc.collect()  # also empties the lists of free tuples and the like
            sys._clear_type_cache()  # some 4,000 names of attributes, kept as they come
        done = Done(
            images=commit.images if commit else 0,
            instances=commit.instances if commit else 0,
            quarantined=commit.quarantined if commit else 0,
            cpu_s=round(cpu_s, 3),
            reading=gauge.read(),
            outputs=[output.path for output in commit.outputs.values()] if commit else [],
        )
        print(json.dumps(asdict(done)), flush=True)


if __name__ == "__main__":
    _work(load(LabelConfig, sys.argv[1]), sys.argv[2:] == ["exact"])
