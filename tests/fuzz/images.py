"""Fuzzed images, packed in turn as tar, Parquet and folder: `python -m tests.fuzz.images --count 10000 --seed 7`."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz import seeds
from tests.fuzz.mutations import mutated
from tests.fuzz.runner import Case, options, report, run

GROUP = 40  # images of a container


def fuzzed(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Images by name; every twentieth is valid."""
    valid = seeds.images()
    others = list(valid.values())
    names = list(valid)
    for number in range(count):
        random = np.random.default_rng([seed, number])
        name = names[int(random.integers(len(names)))]
        data = valid[name] if number % 20 == 0 else mutated(valid[name], random, others)
        yield f"{number:06d}-{name}", data


def cases(count: int, seed: int) -> Iterator[tuple[str, Case]]:
    """Containers of `GROUP` images."""
    files: dict[str, bytes] = {}
    for number, (name, data) in enumerate(fuzzed(count, seed), start=1):
        files[name] = data
        if len(files) == GROUP or number == count:
            form = ("tar", "parquet", "images")[number // GROUP % 3]
            yield f"{number:06d}-{form}", (_packed(files, form), len(files))
            files = {}


def _packed(files: Mapping[str, bytes], form: str) -> Mapping[str, bytes]:
    if form == "tar":
        return {"shard.tar": seeds.tar_of(files)}
    if form == "parquet":
        stream = io.BytesIO()
        pq.write_table(pa.table({"key": list(files), "image": list(files.values())}), stream)
        return {"shard.parquet": stream.getvalue()}
    return files


def main(arguments: Sequence[str]) -> int:
    """Fuzz, and print the table."""
    chosen = options(arguments, "Label damaged images.", 10_000)
    return report(run(cases(chosen.count, chosen.seed), keep=chosen.keep), chosen.keep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
