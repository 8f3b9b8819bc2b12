"""Which images are labelled, and where to: chosen once, and the same in each measure of a benchmark."""

from __future__ import annotations

import hashlib
import io
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from pipeline import __version__, founding, ledger, sources
from pipeline.config import LabelConfig
from pipeline.decoding import Decoding
from pipeline.errors import UserError
from pipeline.plan import Planned
from pipeline.records import SCHEMA_VERSION, ImageRecord, LabelerInfo, Manifest, Pixels, Shard
from pipeline.store import Store, join, local_path, redact, scheme
from pipeline.worker import Run

#: Shards that each worker has where the input's own are too large and are packed anew.
SHARDS_A_WORKER = 4
#: That is, have more than so many times a worker's share of the images that are wanted.
_TOO_MANY = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is labelled.

    config: of the labeling job, on a local Ray, with its number of workers. folder: a fresh one, below `output.uri`.
    shards: of the input; each `loops` times, under an id of its own each time. listings: what they refer to, by the URI
    within a run. images: in all of them. packed: whether the shards were made for this, from the first images.
    """

    config: LabelConfig
    folder: str
    workers: int
    shards: tuple[Shard, ...]
    images: int
    loops: int = 1
    packed: bool = False
    listings: Mapping[str, bytes] = field(default_factory=dict)

    def run(self, name: str, labeler: LabelerInfo, store: Store) -> Run:
        """A new run over the shards, below the folder: planned, and founded."""
        uri = join(self.folder, f"{name}-{uuid.uuid4().hex[:8]}")
        config = replace(self.config, output=replace(self.config.output, uri=uri))
        self.put_listings(uri, store)
        manifest = Manifest(
            run_id=uuid.uuid4().hex[:12],
            schema_version=SCHEMA_VERSION,
            version=__version__,
            created="1970-01-01T00:00:00+00:00",  # nobody will look
            config=config.labels_depend_on(),
            fingerprint=labeler.fingerprint,
            categories=labeler.categories,
            shards=self.shards,
        )
        ledger.write_manifest(store, uri, manifest)
        return Run(id=manifest.run_id, uri=uri, config=config)

    def put_listings(self, uri: str, store: Store) -> None:
        """Write what the shards refer to where a run at `uri` looks for it."""
        for place, listing in self.listings.items():
            store.put(join(uri, place), listing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What a measure took for all its images: seconds, and those of its processes on a CPU, where they are known."""

    images: int
    seconds: float
    cpu_seconds: float | None = None

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def choose(config: LabelConfig, *, folder: str, workers: int, images: int, store: Store) -> Work:
    """Shards of the input with at least so many images: whole ones, repeated where the input has fewer.

    Where the first shard alone has far more than that, the first images are packed into smaller ones in the folder.

    Args:
        config: of the labeling job; its URIs are absolute.
        folder: where the runs go.
        workers: of a run; it gets a shard for each at least.
        images: how many are wanted.
        store: where all of it is.

    Raises:
        UserError: the input is refused, or has no image.
    """
    most = max(1, int(_TOO_MANY * images / workers))
    chosen: list[Planned] = []
    total = 0
    for planned in founding.planned_shards(config, store):
        has = _count(planned, config, folder, store, most=most + 1)
        if has > most:
            if chosen:
                break
            per_shard = -(-images // (workers * SHARDS_A_WORKER))
            if planned.listing is None:
                config, packed = _packed(planned, images, per_shard, config=config, folder=folder, store=store), True
            else:
                config, packed = _with_input(config, images_per_shard=per_shard), False
            return replace(choose(config, folder=folder, workers=workers, images=images, store=store), packed=packed)
        chosen.append(planned)
        total += has
        if total >= images and len(chosen) >= workers:
            break
    if not total:
        raise UserError(f"input.uri: there is no image in {redact(', '.join(config.input.uris))}")
    loops = max(-(-images // total), -(-workers // len(chosen)))
    return Work(
        config=config,
        folder=folder,
        workers=workers,
        shards=tuple(_looped([one.shard for one in chosen], loops)),
        images=total * loops,
        loops=loops,
        listings={one.shard.uri: one.listing for one in chosen if one.listing is not None},
    )


def first_images(config: LabelConfig, *, folder: str, count: int, store: Store) -> list[Pixels]:
    """The first images of the input that can be decoded; so many, or as many as its first shard has."""
    planned = next(founding.planned_shards(config, store))
    if planned.listing is not None:
        store.put(join(folder, planned.shard.uri), planned.listing)
    run = Run(id="", uri=folder, config=config)
    with Decoding(config.limits) as decoding:
        every = map(decoding.one, islice(records(planned.shard, run, store), 4 * count))
        return list(islice((one.pixels for one in every if not isinstance(one, str)), count))


def records(shard: Shard, run: Run, store: Store) -> Iterator[ImageRecord]:
    """The images of a shard, as the worker reads them."""
    options = sources.ReadOptions(
        max_image_bytes=run.config.limits.max_image_bytes,
        run_uri=run.uri,
        image_column=run.config.input.image_column,
        key_column=run.config.input.key_column,
    )
    return sources.SOURCES[shard.format](shard, store=store, options=options)


@contextmanager
def fresh_folder(output: str, store: Store) -> Iterator[str]:
    """A folder of a new name below `output`, which is removed afterwards with all that is in it."""
    uri = join(output, f"benchmark-{uuid.uuid4().hex[:12]}")
    local = Path(local_path(uri)) if scheme(uri) in ("", "file") else None
    made = [] if local is None else [one for one in (local, *local.parents) if not one.exists()]
    try:
        yield uri
    finally:
        for info in list(store.list(join(uri, ""), literal=True)):
            store.delete(info.uri)
        for one in made:  # the innermost first; what is not empty is somebody else's by now
            _remove_empty(one)


def _remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but empty folders."""
    for one in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        one.rmdir()
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _count(planned: Planned, config: LabelConfig, folder: str, store: Store, *, most: int) -> int:
    """How many images a shard has; no more than `most` of them are counted."""
    if planned.images is not None:
        return planned.images
    run = Run(id="", uri=folder, config=config)
    return sum(1 for _ in islice(records(planned.shard, run, store), most))


def _packed(
    planned: Planned, images: int, per_shard: int, *, config: LabelConfig, folder: str, store: Store
) -> LabelConfig:
    """The config with the first images of a shard for its input, packed as they are into smaller tars."""
    place = join(folder, "inputs", "")
    rest = islice(records(planned.shard, Run(id="", uri=folder, config=config), store), images)
    for number in count():
        group = list(islice(rest, per_shard))
        if not group:
            return _with_input(config, uri=(place,), format="tar")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for row, record in enumerate(group):
                member = tarfile.TarInfo(f"{number}-{row}.jpg")  # decoding goes by the bytes, not by the name
                member.size = len(record.data)
                tar.addfile(member, io.BytesIO(record.data))
        store.put(join(place, f"{number:06d}.tar"), buffer.getvalue())
    raise AssertionError


def _with_input(config: LabelConfig, **changes: Any) -> LabelConfig:
    return replace(config, input=replace(config.input, **changes))


def _looped(shards: list[Shard], loops: int) -> Iterator[Shard]:
    """The shards over and over, each with an id and a number of its own."""
    numbers = count()
    for loop in range(loops):
        for shard in shards:
            mark = hashlib.sha256(f"{shard.id} {loop}".encode()).hexdigest()[:20]
            yield replace(shard, id=mark if loop else shard.id, number=next(numbers))
