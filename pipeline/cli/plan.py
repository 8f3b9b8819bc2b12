"""`patchlabel plan`: what a run would label, before it does."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from pipeline import ledger
from pipeline.cli.common import (
    DONE,
    Number,
    config_option,
    counted,
    json_option,
    print_json,
    print_lines,
    set_option,
    size,
)
from pipeline.config import LabelConfig, WorkersRange, load
from pipeline.errors import UserError
from pipeline.estimate import Estimate, choose, estimate
from pipeline.founding import changes, located, planned_shards
from pipeline.plan import Planned
from pipeline.records import Shard
from pipeline.shard_list import ShardList
from pipeline.store import Store, join, redact


@click.command("plan")
@config_option
@set_option
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Label N of the images here, and time it.")
@click.option("--price", type=Number(min=0), metavar="X", help="Of an hour of a GPU, in any currency.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="How many there will be, for the time.")
@json_option
def plan_command(
    path: str, settings: Sequence[str], sample: int | None, price: float | None, workers: int | None, as_json: bool
) -> int:
    """Tell what a run would label, and how far it is where it has begun. Writes nothing.

    With --sample, also how long it would take and what it would cost, for workers like this machine: with a GPU where
    there is one. For example: patchlabel plan --config FILE --sample 200 --price 2.50 --workers 16
    """
    if sample is None and (price is not None or workers is not None):
        raise UserError("--price and --workers are of use together with --sample N, which times N images")
    config, store = located(load(LabelConfig, path, settings)), Store()
    formats: Counter[str] = Counter()
    images: int | None = 0
    nbytes = 0
    chosen: list[Planned] = []

    def counting(all_planned: Iterable[Planned]) -> Iterator[Shard]:
        nonlocal images, nbytes, chosen
        for planned in all_planned:
            chosen = choose(chosen, planned)
            images = None if images is None or planned.images is None else images + planned.images
            nbytes += planned.shard.bytes
            formats[planned.shard.format] += 1
            yield planned.shard

    with _notes() as notes:
        shards = ShardList.of(counting(planned_shards(config, store)))
    timed = None if sample is None else estimate(config, chosen, sample, images=images, nbytes=nbytes, store=store)
    found = {
        "input": [redact(uri) for uri in config.input.uris],
        "shards": len(shards),
        "formats": formats,
        "images": images,
        "bytes": nbytes,
        "notes": notes,
        "output": redact(config.output.uri),
        "output_formats": config.output.formats,
        "run": _run_there(config, store, shards),
        "estimate": None if timed is None else _estimated(timed, workers or _workers(config), len(shards), price),
    }
    if as_json:
        print_json(found)
    else:
        _print_plan(found)
    return DONE


def _workers(config: LabelConfig) -> int:
    """How many workers the config asks for; one where it leaves that to the cluster."""
    wanted = config.run.workers
    return wanted.max if isinstance(wanted, WorkersRange) else wanted or 1


def _estimated(timed: Estimate, workers: int, shards: int, price: float | None) -> dict[str, Any]:
    """The estimate for JSON. cost is that of all images, price that of an hour."""
    cost = None if price is None else timed.cost(price)
    return {
        **asdict(timed),
        "worker_hours": timed.worker_hours,
        "workers": workers,
        "hours": timed.hours(min(workers, shards)),
        "workers_without_shard": max(0, workers - shards),
        "price": price,
        "cost": cost,
        "cost_per_1000_images": None if cost is None else 1000 * cost / max(1, timed.images),
    }


def _estimate_lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rate, about = found["images_per_second"], "" if found["counted"] else "about "
    where = f"{counted(found['sampled'], 'image')} of {counted(found['shards'], 'shard')}, on {found['device']}"
    yield "timed", f"{rate:.2f} images a second by one worker ({where})"
    hours, workers = found["hours"], counted(found["workers"], "worker")
    yield "time", f"{about}{_hours(hours)} with {workers}, for {about}{counted(found['images'], 'image')}"
    if found["cost"] is not None:
        unit, each = "a GPU hour" if found["gpus"] else "an hour", found["cost_per_1000_images"]
        yield "cost", f"{about}{found['cost']:,.2f} at {found['price']:g} {unit}, {each:.4f} for 1,000 images"
    if idle := found["workers_without_shard"]:
        yield "note", f"{counted(idle, 'worker')} would have no shard"


def _hours(hours: float) -> str:
    """A time for people.

    >>> _hours(0.01), _hours(1.5), _hours(500)
    ('36 s', '90 min', '20.8 days')
    """
    if hours < 1 / 30:
        return f"{3600 * hours:.0f} s"
    if hours < 2:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def _run_there(config: LabelConfig, store: Store, planned: ShardList) -> dict[str, Any] | None:
    """The run that is where the output would go, if any: how far it is, and in what the config and the input differ."""
    if not store.exists(join(config.output.uri, "manifest.json")):
        return None
    manifest = ledger.read_manifest(store, config.output.uri)
    pending = len(ledger.pending(manifest, ledger.listing(store, config.output.uri).ids))
    return {
        "run_id": manifest.run_id,
        "created": manifest.created,
        "shards": len(manifest.shards),
        "done": len(manifest.shards) - pending,
        "pending": pending,
        "differences": changes(config, manifest),
        "shards_not_in_it": len(planned.without(ShardList.of(manifest.shards).ids)),
    }


def _print_plan(found: dict[str, Any]) -> None:
    formats = ", ".join(f"{count} {format}" for format, count in found["formats"].items())
    run = found["run"]
    lines = [
        ("input", ", ".join(found["input"])),
        ("shards", f"{found['shards']} ({formats})"),
        ("images", "unknown until they are read" if found["images"] is None else str(found["images"])),
        ("size", size(found["bytes"])),
        *(("note", note) for note in found["notes"]),
        *(_estimate_lines(found["estimate"]) if found["estimate"] else ()),
        ("output", f"{found['output']} ({', '.join(found['output_formats'])})"),
    ]
    if run is None:
        lines.append(("run", "none there yet"))
    else:
        lines.append(
            ("run", f"{run['run_id']} of {run['created']}: {run['done']} shards done, {run['pending']} pending")
        )
        lines += [("differs", difference) for difference in run["differences"]]
        if run["shards_not_in_it"]:
            lines.append(("note", f"{counted(run['shards_not_in_it'], 'shard')} of this input not part of that run"))
    print_lines(lines)


@contextmanager
def _notes() -> Iterator[list[str]]:
    """What the package logs meanwhile, as a list."""
    notes: list[str] = []

    class _Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    logger, keeper = logging.getLogger("pipeline"), _Keeper()
    level = logger.level
    logger.addHandler(keeper)
    logger.setLevel(logging.INFO)
    try:
        yield notes
    finally:
        logger.removeHandler(keeper)
        logger.setLevel(level)
