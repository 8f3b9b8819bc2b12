"""What the drivers of a run have noted: who was at work when, how much was done, what had to be tried again.

    <run>/history/<driver>.json     of each start of the run; written once a minute and at its end

Nothing depends on it: the commits alone say what is done. A driver that is killed leaves what it wrote last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import StoreError
from pipeline.store import Store, join, name, redact

FOLDER = "history"
_LIMIT = 16 << 20
_NAME = re.compile(r"[0-9a-f]{12}\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a driver was after so many seconds: workers at work, and what it had seen done by then."""

    seconds: float
    workers: int
    shards: int
    images: int
    instances: int


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What one driver has noted.

    started: by its clock, for people. device: of its first worker; gpus: of each worker. seconds: since it began to
    hire. worker_seconds: those of all workers, from the moment at which each could label. strikes: attempts that cost a
    worker or failed; given_back: shards whose worker was lost for another reason; copies: of slow shards. end: how it
    ended; empty while it goes on, or where it was killed.
    """

    driver: str
    started: str
    host: str
    version: str
    device: str
    gpus: float
    seconds: float
    worker_seconds: float
    strikes: int
    given_back: int
    copies: int
    end: str
    points: tuple[Point, ...]


_HISTORY: TypeAdapter[History] = TypeAdapter(History)


def read(store: Store, run_uri: str) -> tuple[History, ...]:
    """What all drivers of a run have noted, by the time of their start.

    Raises:
        StoreError: a file is damaged, or the storage failed.
    """
    found = store.list(join(run_uri, FOLDER, ""), literal=True)
    uris = [info.uri for info in found if _NAME.fullmatch(name(info.uri))]
    return tuple(sorted((_load(store, uri) for uri in uris), key=lambda one: (one.started, one.driver)))


def write(store: Store, run_uri: str, history: History) -> None:
    """Write what a driver has noted, in place of what it wrote before."""
    store.put(join(run_uri, FOLDER, f"{history.driver}.json"), _HISTORY.dump_json(history) + b"\n")


def _load(store: Store, uri: str) -> History:
    try:
        return _HISTORY.validate_json(store.get(uri, limit=_LIMIT), strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"]
        raise StoreError(f"{redact(uri)} is damaged: {fault}.") from None
