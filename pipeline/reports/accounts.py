"""The report of a run: report.json for machines, report.html for people, throughput.png for a page of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pipeline.accounting import Account, Histogram
from pipeline.reports import figures, webpage
from pipeline.reports.sections import Cell, Plot, Section, Table, percent
from pipeline.store import Store, join

TITLE = "Labeling run"

_STEPS = {
    "read": "read shards",
    "decode": "decode images",
    "prepare": "resize images",
    "model": "model",
    "encode": "masks to RLE",
    "write": "write Parquet and COCO",
    "upload": "upload",
}


def write(store: Store, output: str, account: Account) -> None:
    """Write report.json, report.html and throughput.png, each whole or not at all.

    Raises:
        StoreError: a file cannot be written.
    """
    data = json.dumps(account.document(), indent=2, allow_nan=False) + "\n"
    store.put(join(output, "throughput.png"), _throughput(account))
    store.put(join(output, "report.json"), data.encode("utf-8", "backslashreplace"))
    status = account.status
    subtitle = f"{status.uri}, run {status.run_id} of {status.created}"
    page = webpage.page(TITLE, subtitle, list(_tiles(account)), list(_notes(account)), list(_sections(account)))
    store.put(join(output, "report.html"), page.encode("utf-8", "backslashreplace"))


def _tiles(account: Account) -> Iterator[tuple[str, Cell, str]]:
    status, cost = account.status, account.cost
    yield "images", status.images, f"{status.labelled:,} labelled, {status.empty:,} empty"
    yield "masks", status.instances, f"{status.instances / max(1, status.images):.1f} an image"
    yield "set aside", status.quarantined, f"images, and {status.failed} of {status.shards:,} shards"
    if cost.cost is not None:
        yield "cost", f"{cost.cost:,.2f}", f"{cost.per_1000 or 0:.4f} for 1,000 images"
    if status.images_per_second is not None:
        yield "images a second", f"{status.images_per_second:.1f}", "of one worker, on average"


def _notes(account: Account) -> Iterator[str]:
    status = account.status
    if left := status.pending + status.failed:
        yield f"The run is not complete: {left:,} of {status.shards:,} shards are not done."
    if len(account.fingerprints) > 1:
        named = ", ".join(f"{name} ({count:,} shards)" for name, count in account.fingerprints.items())
        yield f"The labels are of several models: {named}."
    if status.corrections:
        yield f"People have corrected {status.corrected:,} images, in {status.corrections} versions."


def _sections(account: Account) -> Iterator[Section]:
    yield _time(account)
    yield _costs(account)
    yield _labels(account)
    yield _failures(account)
    yield _slow(account)
    yield _provenance(account)


def _time(account: Account) -> Section:
    plots = []
    if account.throughput:
        plots.append(Plot(png=_throughput(account), text="Images a minute over the time of the run"))
    rows: tuple[tuple[Cell, ...], ...] = ()
    if total := sum(account.stages.values()):
        names = [_STEPS[step] for step in account.stages]
        png = figures.shares(names, list(account.stages.values()), title="Where the seconds of the workers go")
        plots.append(Plot(png=png, text="The share of each step"))
        rows = tuple(
            (_STEPS[step], f"{seconds:,.1f}", percent(seconds / total), _each(seconds, account.status.images))
            for step, seconds in account.stages.items()
        )
    return Section(
        title="Throughput",
        text="By the clocks of the workers, when their shards were done. Steps overlap: together they take longer than "
        "the clock shows. On a GPU the model runs ahead of its results, and waits for them where masks are encoded.",
        tables=(Table(columns=("step", "seconds", "%", "ms an image"), rows=rows),) if rows else (),
        plots=tuple(plots),
    )


def _costs(account: Account) -> Section:
    cost = account.cost
    rows: list[tuple[Cell, ...]] = [
        ("hours of workers", f"{cost.worker_hours:.3f}"),
        ("hours of GPUs", f"{cost.gpu_hours:.3f}"),
        ("a shard had the model, percent of these", percent(cost.busy)),
        ("the model computed: share of the ceiling", percent(cost.ceiling)),
        ("the model waited for images, percent", percent(cost.starved)),
        ("attempts that cost a worker, or failed", cost.strikes),
        ("shards given back as their worker was lost", cost.given_back),
        ("copies of slow shards", cost.copies),
    ]
    if cost.cost is not None:
        rows += [
            ("price of an hour", f"{cost.price:g}"),
            ("cost", f"{cost.cost:,.2f}"),
            ("cost of 1,000 images", f"{cost.per_1000:.4f}" if cost.per_1000 is not None else None),
        ]
    drivers = tuple(
        (
            one.started,
            one.device or "-",
            f"{one.seconds:,.0f}",
            f"{one.worker_seconds:,.0f}",
            one.points[-1].images if one.points else 0,
            one.end or "no word: it goes on, or was killed",
        )
        for one in account.drivers
    )
    tables = [Table(columns=("", ""), rows=tuple(rows))]
    if drivers:
        columns = ("start", "device", "seconds", "worker seconds", "images", "end")
        tables.append(Table(columns=columns, rows=drivers, figures=False))
    return Section(
        title="Cost",
        text="Hours count from the moment at which a worker could label until it was let go, as the drivers noted.",
        tables=tuple(tables),
    )


def _labels(account: Account) -> Section:
    shards, of = account.sampled
    total = sum(account.classes.values())
    rows = tuple((name, count, percent(count / total)) for name, count in account.classes.items())
    found = {"score": account.scores, **account.qualities}
    columns = {name: (one.low, one.high, one.counts) for name, one in found.items() if one is not None}
    plots = []
    if columns:
        plots.append(Plot(png=figures.histograms(columns, title="Masks"), text="How scores and qualities spread"))
    means = tuple((name, _mean(one)) for name, one in found.items() if one is not None)
    return Section(
        title="Labels",
        text=f"Of {shards:,} of {of:,} shards that are done" + (f"; {account.view}." if account.view else "."),
        tables=(
            *([Table(columns=("class", "masks", "%"), rows=rows)] if rows else []),
            *([Table(columns=("", "mean"), rows=means)] if means else []),
        ),
        plots=tuple(plots),
    )


def _failures(account: Account) -> Section:
    reasons = tuple((reason, count) for reason, count in account.status.reasons.items())
    failures = tuple((one.uri, one.attempts, one.error) for one in account.status.failures[:100])
    tables = []
    if reasons:
        tables.append(Table(columns=("images quarantined", "number"), rows=reasons))
    if failures:
        tables.append(Table(columns=("shard set aside", "attempts", "why"), rows=failures, figures=False))
    return Section(title="Failures", text="" if tables else "There are none.", tables=tuple(tables))


def _slow(account: Account) -> Section:
    def rows(found: tuple[tuple[str, int, float], ...]) -> tuple[tuple[Cell, ...], ...]:
        return tuple((name, images, f"{seconds:,.1f}", _each(seconds, images)) for name, images, seconds in found)

    return Section(
        title="Slowest",
        text=f"By time an image. {account.workers_seen:,} workers have labelled.",
        tables=(
            Table(columns=("shard", "images", "seconds", "ms an image"), rows=rows(account.slowest)),
            Table(columns=("worker", "images", "seconds", "ms an image"), rows=rows(account.workers)),
        ),
    )


def _provenance(account: Account) -> Section:
    rows: list[tuple[Cell, ...]] = [
        ("run", account.status.uri),
        ("labelers", ", ".join(f"{name} ({count:,} shards)" for name, count in account.fingerprints.items())),
        ("versions", f"begun by {account.status.version}, report by {account.version}"),
        ("sha256 of all commits", account.commits_sha256),
    ]
    rows += [(key, json.dumps(value, ensure_ascii=False)) for key, value in account.config.items()]
    return Section(title="Provenance", tables=(Table(columns=("", ""), rows=tuple(rows), figures=False),))


def _throughput(account: Account) -> bytes:
    minutes = [float(minute) for minute, _ in account.throughput]
    images = [float(count) for _, count in account.throughput]
    if len(minutes) < 3:  # a run of a few minutes: what its drivers saw is finer
        points = [point for one in account.drivers[-1:] for point in one.points]
        minutes = [point.seconds / 60 for point in points]
        images = [float(point.images) for point in points]
        return figures.over_time(minutes, images, title="Images done", y_label="images")
    return figures.over_time(minutes, images, title="Throughput", y_label="images a minute", steps=True)


def _each(seconds: float, images: int) -> str:
    return f"{1000 * seconds / images:,.1f}" if images else "-"


def _mean(one: Histogram) -> str:
    return f"{one.mean:.3f}"
