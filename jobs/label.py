"""Label images: `python -m jobs.label --config FILE [--set key=value]...`. Run again, it goes on where it stopped.

Exit status: 0 all shards are committed; 1 some are not; 2 the input was refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import command
from pipeline import driver, progress
from pipeline.config import LabelConfig, load


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    options = command.parse("jobs.label", "Label images with instance masks; also resumes.", argv)

    def work() -> int:
        config = load(LabelConfig, options.config, options.set)
        with progress.reporter() as report:
            outcome = driver.run(config, report)
        print(progress.summary(outcome))
        return command.DONE if outcome.complete else command.UNFINISHED

    return command.guarded(work)


if __name__ == "__main__":
    sys.exit(main())
