"""`patchlabel report`: what a run has done, what it took, and what it cost."""

from __future__ import annotations

import click

from pipeline.accounting import account
from pipeline.cli.common import DONE, json_option, print_json, print_lines, view_options
from pipeline.reports import accounts
from pipeline.store import Store, join, redact
from pipeline.view import View


@click.command("report")
@click.argument("run_uri")
@click.option("--out", metavar="URI", help="Where the report goes; without it, RUN/report.")
@click.option("--price", type=click.FloatRange(min=0), metavar="X", help="Of an hour of a GPU, in any currency.")
@view_options
@json_option
def report_command(run_uri: str, out: str | None, price: float | None, view: View, as_json: bool) -> int:
    """Write the report of a run, which may still go on: report.html, report.json, throughput.png."""
    store = Store()
    found = account(store, run_uri, view, price=price)
    out = out or join(run_uri, "report")
    accounts.write(store, out, found)
    if as_json:
        print_json(found.document())
        return DONE
    cost = found.cost
    lines = [
        ("images", f"{found.status.images} of {found.status.done} of {found.status.shards} shards"),
        ("hours", f"{cost.worker_hours:.3f} of workers, {cost.gpu_hours:.3f} of GPUs"),
    ]
    if cost.cost is not None and cost.per_1000 is not None:
        lines.append(("cost", f"{cost.cost:,.2f}, {cost.per_1000:.4f} for 1,000 images"))
    print_lines([*lines, ("report", redact(join(out, "report.html")))])
    return DONE
