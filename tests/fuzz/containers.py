"""Fuzzed tars, Parquets and COCO jsons: `python -m tests.fuzz.containers --count 1000 --seed 7`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from tests.fakes import draw
from tests.fuzz import seeds
from tests.fuzz.mutations import mutated
from tests.fuzz.runner import Case, options, report, run


def cases(count: int, seed: int) -> Iterator[tuple[str, Case]]:
    """One container each; every twentieth is valid. A tar may be packed, before or after it is damaged."""
    kinds = [seeds.tars(), seeds.tars(), seeds.parquets(), seeds.cocos()]
    beside = {"a.png": draw(1), "b.png": draw(2)}
    for number in range(count):
        random = np.random.default_rng([seed, number])
        valid = kinds[number % len(kinds)]
        name = list(valid)[int(random.integers(len(valid)))]
        data, others = valid[name], list(valid.values())
        packing = int(random.integers(3)) if name.endswith(".tar") else 0
        data = seeds.packed(data) if packing == 1 else data
        if number // len(kinds) % 20:
            data = mutated(data, random, others)
        data = seeds.packed(data) if packing == 2 else data
        file = f"{name}.gz" if packing else name
        yield f"{number:06d}-{file}", ({file: data, **(beside if name.endswith(".json") else {})}, -1)


def main(arguments: Sequence[str]) -> int:
    """Fuzz, and print the table."""
    chosen = options(arguments, "Label damaged containers.", 1000)
    return report(run(cases(chosen.count, chosen.seed), keep=chosen.keep), chosen.keep)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
