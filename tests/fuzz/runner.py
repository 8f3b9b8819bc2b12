"""Fuzzed inputs to a table of what became of them. They are labelled in a process of their own, whose death is seen."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 300

#: A fuzzed input: files by name, and how many images they must account for, or -1.
Case = tuple[Mapping[str, bytes], int]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of all inputs. faults: (input, what was wrong with how it was treated)."""

    inputs: int = 0
    shards: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str]] = field(default_factory=list)
    slowest_input: tuple[float, str] = (0.0, "")
    slowest_image: tuple[float, str] = (0.0, "")
    peak_mb: float = 0.0

    def __str__(self) -> str:
        lines = [f"{self.inputs} inputs"]
        for title, counts in (("containers", self.shards), ("images", self.reasons)):
            lines += [f"{title}:", *(f"  {count:7d}  {name}" for name, count in counts.most_common())]
        lines.append(f"slowest input: {self.slowest_input[0]:.2f} s of CPU, {self.slowest_input[1]}")
        lines.append(f"slowest image to decode: {self.slowest_image[0]:.3f} s of CPU, {self.slowest_image[1]}")
        lines.append(f"peak resident memory: {self.peak_mb:.0f} MB")
        lines.append(f"faults: {len(self.faults)}")
        return "\n".join([*lines, *(f"  {name}: {what}" for name, what in self.faults)])


class Child:
    """The process that labels; a new one in the place of one that died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end()

    def label(self, folder: Path, expected: int) -> dict[str, Any]:
        """What became of the input in a folder; `died` if the process did."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.child"],
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder} {expected}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        if ready and (line := self._process.stdout.readline()):
            result: dict[str, Any] = json.loads(line)
            return result
        why = f"no answer within {PATIENCE_S} s" if not ready else f"exit status {self._process.wait()}"
        self._end()
        return {"died": why}

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def run(cases: Iterator[tuple[str, Case]], *, keep: Path) -> Tally:
    """Label each input, count, and keep those by which a promise was broken.

    Args:
        cases: the inputs, each with a name.
        keep: the folder for these inputs.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch, Child() as child:
        for name, (files, expected) in cases:
            tally.inputs += 1
            folder = _written(Path(scratch) / name, files)
            result = child.label(folder, expected)
            if what := result.get("died") or result["fault"]:
                tally.faults.append((name, what))
                shutil.copytree(folder, keep / name, dirs_exist_ok=True)
            shutil.rmtree(folder)
            if "died" in result:
                tally.shards["died"] += 1
                continue
            tally.shards.update(result["shards"])
            tally.reasons.update(result["reasons"])
            if "said" in result:
                tally.said[result["said"]] += 1
            tally.slowest_input = max(tally.slowest_input, (result["seconds"], name))
            tally.slowest_image = max(tally.slowest_image, (result["slowest"][0], f"{result['slowest'][1]} in {name}"))
            tally.peak_mb = max(tally.peak_mb, result["peak"] / 1000)
    return tally


def _written(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def report(tally: Tally, keep: Path) -> int:
    """Print the table; the exit status."""
    print(tally)
    if tally.faults:
        print(f"inputs kept in {keep}")
    return 1 if tally.faults else 0


def options(arguments: Sequence[str], what: str, count: int) -> Any:
    """--count, --seed, --keep."""
    import argparse

    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "patchlabel-fuzz")
    return parser.parse_args(arguments)
