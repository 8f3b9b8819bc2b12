"""Label images: `python -m jobs.label --config FILE [--set key=value]...`. Run again, it goes on where it stopped.

Exit status: 0 all shards are committed; 1 some are not; 2 the input was refused.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from jobs import command
from pipeline import accounting, driver, progress
from pipeline.config import LabelConfig, load
from pipeline.errors import LabelingError
from pipeline.reports import accounts
from pipeline.store import Store, join

log = logging.getLogger("jobs.label")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    options = command.parse("jobs.label", "Label images with instance masks; also resumes.", argv)

    def work() -> int:
        config = load(LabelConfig, options.config, options.set)
        with progress.reporter() as report:
            outcome = driver.run(config, report)
        if not outcome.interrupted:
            _report(outcome.uri, config.run.price)
        print(progress.summary(outcome))
        return command.DONE if outcome.complete else command.UNFINISHED

    return command.guarded(work)


def _report(run_uri: str, price: float | None) -> None:
    """Write the report of the run beside it; without one, the labels are no worse."""
    store = Store()
    try:
        accounts.write(store, join(run_uri, "report"), accounting.account(store, run_uri, price=price))
    except LabelingError as error:
        log.warning("the report was not written; `patchlabel report` does it, too: %s", error)


if __name__ == "__main__":
    sys.exit(main())
