"""`patchlabel report`: what a run has done, what it took, and what it cost."""

from __future__ import annotations

import click

from pipeline import ledger, outputs
from pipeline.accounting import account
from pipeline.cli.common import (
    DONE,
    PLACE,
    Number,
    counted,
    json_option,
    print_json,
    print_lines,
    run_argument,
    view_options,
)
from pipeline.reports import accounts
from pipeline.store import Store, join, redact
from pipeline.view import View


@click.command("report")
@run_argument
@click.option("--out", type=PLACE, metavar="URI", help="Where the report goes; without it, RUN/report.")
@click.option("--price", type=Number(min=0), metavar="X", help="Of an hour of a GPU, in any currency.")
@view_options
@json_option
def report_command(run_uri: str, out: str | None, price: float | None, view: View, as_json: bool) -> int:
    """Write what a run has done, took and cost, as a page and as JSON.

    The run may still go on. For example: patchlabel report RUN --price 2.50

    Writes report.html, report.json and throughput.png.
    """
    store, out = Store(), out or join(run_uri, "report")
    ledger.read_manifest(store, run_uri)  # before anything is made in a place that is no run
    outputs.check_folder(store, out, key="--out")
    found = account(store, run_uri, view, price=price)
    accounts.write(store, out, found)
    if as_json:
        print_json(found.document())
        return DONE
    cost = found.cost
    lines = [
        ("images", f"{found.status.images}, in {found.status.done} of {counted(found.status.shards, 'shard')}"),
        ("hours", f"{cost.worker_hours:.3f} of workers, {cost.gpu_hours:.3f} of GPUs"),
    ]
    if cost.cost is not None and cost.per_1000 is not None:
        lines.append(("cost", f"{cost.cost:,.2f}, {cost.per_1000:.4f} for 1,000 images"))
    print_lines([*lines, ("report", redact(join(out, "report.html")))])
    return DONE
