"""`patchlabel plan`: what a run would label, before it does."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from pipeline import ledger
from pipeline.cli.common import DONE, config_option, counted, json_option, print_json, print_lines, set_option, size
from pipeline.config import LabelConfig, load
from pipeline.founding import changes, located, planned_shards
from pipeline.plan import Planned
from pipeline.records import Shard
from pipeline.shard_list import ShardList
from pipeline.store import Store, join, redact


@click.command("plan")
@config_option
@set_option
@json_option
def plan_command(path: str, settings: Sequence[str], as_json: bool) -> int:
    """Tell what a run would label, and how far it is where it has begun. Writes nothing."""
    config, store = located(load(LabelConfig, path, settings)), Store()
    formats: Counter[str] = Counter()
    images: int | None = 0
    nbytes = 0

    def counted(all_planned: Iterable[Planned]) -> Iterator[Shard]:
        nonlocal images, nbytes
        for planned in all_planned:
            images = None if images is None or planned.images is None else images + planned.images
            nbytes += planned.shard.bytes
            formats[planned.shard.format] += 1
            yield planned.shard

    with _notes() as notes:
        shards = ShardList.of(counted(planned_shards(config, store)))
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
    }
    if as_json:
        print_json(found)
    else:
        _print_plan(found)
    return DONE


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
