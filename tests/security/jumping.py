"""A labeler that sets the clock of a process which wall_clock.c is preloaded into; labels a run, without Ray."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.records import Instances, Pixels
from pipeline.store import Store
from pipeline.worker import Run, label_shard
from tests.fakes import ThresholdLabeler
from tests.small_runs import config_of, found_run

JUMPS = itertools.cycle(("86400", "-86400", "0"))


class JumpingLabeler(ThresholdLabeler):
    """Before each batch, the clock of all processes of the run jumps by a day or two; notes what time it then was."""

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        place = Path(os.environ["CLOCK_OFFSET"])
        new = place.with_suffix(".new")
        new.write_text(next(JUMPS))
        new.replace(place)
        with place.with_suffix(".times").open("a") as times:
            times.write(f"{time.time():.0f}\n")  # noqa: TID251 the clock that is tried
        return super().label(images)


def main(inputs: str, output: str) -> None:
    """Label all shards of `inputs` as a worker does."""
    config, store = config_of(inputs, output), Store()
    labeler = replace(config.labeler, name="tests.security.jumping:JumpingLabeler", batch_size=1)
    config = replace(config, labeler=labeler)
    manifest, built = found_run(store, config)
    for shard in manifest.shards:
        label_shard(shard, run=Run(id=manifest.run_id, uri=output, config=config), store=store, labeler=built)


if __name__ == "__main__":
    main(*sys.argv[1:])
