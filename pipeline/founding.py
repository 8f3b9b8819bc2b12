"""Opening a run: planned and founded where there is none, checked and taken up again where there is one."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby

from pipeline import __version__, dates, labelers, ledger
from pipeline.config import InputConfig, LabelConfig, OutputConfig, RunConfig, TrainRunConfig, WorkersRange
from pipeline.errors import StoreError, UnreachableError, UserError
from pipeline.parallel import ahead
from pipeline.plan import Planned, plan
from pipeline.records import SCHEMA_VERSION, LabelerInfo, Manifest, Shard
from pipeline.shard_list import ShardList
from pipeline.store import Store, absolute, join, redact, scheme
from pipeline.store.uris import HIDDEN

log = logging.getLogger("pipeline.run")

_CONNECT_S = 5.0
_LISTINGS = 16  # written at once, when a run of single images is planned
_PROBE = re.compile(rf"((?<!/)/)?{re.escape(HIDDEN)}probe-\w+")


def located(config: LabelConfig, *, in_ray_job: bool = False) -> LabelConfig:
    """The config with absolute URIs of input and output, so that they mean the same to every process.

    Raises:
        UserError: a relative path for the output of a Ray job, whose working directory is removed after it.
    """
    if in_ray_job:
        check_outlives_job("output.uri", config.output.uri)
    return replace(
        config,
        input=replace(
            config.input,
            uri=tuple(absolute(uri) for uri in config.input.uris),
            images=absolute(config.input.images) if config.input.images else None,
        ),
        output=replace(config.output, uri=absolute(config.output.uri)),
        run=replace(config.run, base=None if config.run.base is None else absolute(config.run.base)),
    )


def planned_shards(config: LabelConfig, store: Store) -> Iterator[Planned]:
    """The shards of the input, as `plan.plan` finds them."""
    return plan(
        config.input.uris,
        format=config.input.format,
        images_per_shard=config.input.images_per_shard,
        store=store,
        images_root=config.input.images,
        image_column=config.input.image_column,
        key_column=config.input.key_column,
    )


def check_output(config: LabelConfig, store: Store) -> None:
    """Make sure, before any work is done, that the output can be written; see `check_writable`."""
    check_writable("output.uri", config.output.uri, store)


def check_writable(key: str, uri: str, store: Store) -> None:
    """Make sure that the place which a key of the config names can be written and knows put-if-absent.

    Raises:
        UserError: it cannot, or does not.
        UnreachableError: the storage does not answer; that may be another matter in a minute.
    """
    try:
        store.probe(uri)
    except (StoreError, UserError) as error:
        kind = UnreachableError if isinstance(error, UnreachableError) else UserError
        raise kind(f"{key} cannot be written: {_PROBE.sub('', str(error))}") from error


def check_address(address: str | None) -> None:
    """Make sure that something listens at the address of a Ray cluster; Ray itself would try for minutes.

    Raises:
        UserError: nothing does, or it is no address.
    """
    if address is None or address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UserError(f"run.address is {address!r}; accepted are host:port, ray://host:port and auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"run.address is {address!r}, where no Ray cluster answers: {reason.lower()}") from error


def open_run(config: LabelConfig, store: Store) -> tuple[Manifest, bool]:
    """The run at `config.output.uri`, and whether it was there already.

    A new one is planned: its listings are written (they are named by their content, so that no attempt harms another),
    its manifest not yet, since that also says which labeler it is for; see `found`.

    Raises:
        UserError: the input, the labeler or the cluster is refused, or the run there was made with another config.
    """
    check_address(config.run.address)
    labelers.check(config.labeler, store)
    uri = config.output.uri
    if store.exists(join(uri, "manifest.json")):
        manifest = ledger.read_manifest(store, uri)
        if manifest.version != __version__:
            log.info("the run was begun by version %s of this package; this is %s", manifest.version, __version__)
        _agree(config, changes(config, manifest))
        return manifest, True
    manifest = Manifest(
        run_id=uuid.uuid4().hex[:12],
        schema_version=SCHEMA_VERSION,
        version=__version__,
        created=dates.now(),
        config=config.labels_depend_on(),
        fingerprint="",
        categories=(),
        shards=ShardList.of(_written(config, store)),
    )
    return manifest, False


def found(config: LabelConfig, manifest: Manifest, labeler: LabelerInfo, store: Store) -> Manifest:
    """Write the manifest of a new run, now that its labeler is known -> the manifest that stands.

    That is another driver's, where one has founded the same run in the meantime; both then work on it.

    Raises:
        UserError: another driver founded a run of other shards, another labeler or another config.
    """
    manifest = replace(manifest, fingerprint=labeler.fingerprint, categories=labeler.categories)
    if ledger.write_manifest(store, config.output.uri, manifest):
        return manifest
    standing = ledger.read_manifest(store, config.output.uri)
    _agree(config, changes(config, standing))
    check_labeler(config, standing, labeler)
    if standing.shards != manifest.shards:
        raise UserError(
            f"{redact(config.output.uri)}: another driver has just founded a run of other shards there "
            f"({_compared(standing, manifest)}); its input was listed at another moment, or has changed. Run again to "
            "join it, or give another output.uri"
        )
    log.info("another driver has just founded this run; working on it together")
    return standing


def _written(config: LabelConfig, store: Store) -> Iterator[Shard]:
    """The shards of the input, the listings among them written, some at a time."""

    def write(planned: Planned) -> Shard:
        assert planned.listing is not None
        store.put(join(config.output.uri, planned.shard.uri), planned.listing)
        return planned.shard

    for is_listing, group in groupby(planned_shards(config, store), lambda planned: planned.listing is not None):
        if is_listing:
            yield from ahead(write, group, threads=_LISTINGS)
        else:
            for planned in group:
                yield planned.shard


def _compared(standing: Manifest, planned: Manifest) -> str:
    theirs, ours = ShardList.of(standing.shards), ShardList.of(planned.shards)
    return (
        f"{len(theirs)}, of which {len(theirs.without(ours.ids))} are not in this driver's plan; "
        f"{len(ours.without(theirs.ids))} of the {len(ours)} planned here are not in it"
    )


def check_labeler(config: LabelConfig, manifest: Manifest, labeler: LabelerInfo) -> None:
    """Make sure that a run goes on with the labeler that it was founded with.

    Raises:
        UserError: the labeler is another one.
    """
    if manifest.fingerprint != labeler.fingerprint:
        _agree(config, [f"labeler fingerprint: {manifest.fingerprint} -> {labeler.fingerprint}"])


def changes(config: LabelConfig, manifest: Manifest) -> list[str]:
    """In what a run was made differently than it would be now, as lines of `key: old -> new`; only what changes labels.

    A key that the manifest lacks was not known when the run was founded, which then did what is the default of the key
    now. Versions that agree in all but their last number make the same labels; that is a promise of this package.
    """
    bare = LabelConfig(input=InputConfig(uri=""), output=OutputConfig(uri="")).labels_depend_on()
    found = ledger.differences(_completed(manifest.config, bare), config.labels_depend_on())
    if _series(manifest.version) != _series(__version__):
        found.append(f"package version: {manifest.version} -> {__version__}")
    return found


def _completed(old: Mapping[str, object], usual: Mapping[str, object]) -> dict[str, object]:
    """A config with the usual value of each key that it lacks; a group that is null stays so.

    >>> _completed({"limits": {"bytes": 5}, "tta": None}, {"limits": {"bytes": 9, "pixels": 7}, "tta": {"flip": True}})
    {'limits': {'bytes': 5, 'pixels': 7}, 'tta': None}
    """
    whole = {**usual, **old}
    for key, value in usual.items():
        kept = old.get(key)
        if isinstance(value, Mapping) and isinstance(kept, Mapping):
            whole[key] = _completed(kept, value)
    return whole


def _series(version: str) -> str:
    """What a version shares with those that make the same labels: all but the last number; a pre-release stands alone.

    >>> _series("0.1.12"), _series("0.2.0rc1")
    ('0.1', '0.2.0rc1')
    """
    return version.rpartition(".")[0] if re.fullmatch(r"\d+\.\d+\.\d+", version) else version


def _agree(config: LabelConfig, differences: list[str]) -> None:
    if not differences:
        return
    what = f"{redact(config.output.uri)} holds a run that was made differently ({'; '.join(differences)})"
    if not config.run.accept_changes:
        raise UserError(
            f"{what}; give another output.uri, or go on all the same with --set run.accept_changes=true, which mixes "
            "both in one run"
        )
    log.warning("%s; going on all the same, as run.accept_changes says", what)


def check_outlives_job(key: str, uri: str) -> None:
    """Make sure that what a Ray job writes to the place which a key of the config names is there after the job.

    Raises:
        UserError: a relative path, which lies in the job's working directory.
    """
    if not scheme(uri) and not os.path.isabs(uri):  # noqa: PTH117 a URI, not a Path
        raise UserError(
            f"{key} is {uri!r}, which in a Ray job would lie in a folder that is removed with the job; give an "
            "absolute path or a URI such as s3://bucket/prefix"
        )


def worker_needs(
    run: RunConfig | TrainRunConfig, there: Mapping[str, float], *, in_ray_job: bool, together: int = 1
) -> tuple[float, float]:
    """GPUs and CPUs that each worker asks of Ray; by default a GPU where there are any, and one CPU.

    Args:
        run: how many workers, each with what, and on which cluster.
        there: what the cluster has, such as {"CPU": 2.0}.
        in_ray_job: whether an address that is null is that of the job's cluster.
        together: so many workers have to run at the same time.

    Raises:
        UserError: Ray on this machine alone has no room for them, and would wait for ever for nodes that join.
    """
    gpus = run.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) else 0.0
    cpus = run.cpus_per_worker or 1.0
    grows = run.address != "local" and (run.address is not None or in_ray_job)
    for name, each in () if grows else (("GPU", gpus), ("CPU", cpus)):
        has = there.get(name, 0.0)
        room = _room(each, has, whole=name == "GPU")
        if not room:
            raise UserError(f"run.{name.lower()}s_per_worker is {each:g}, but this machine has {has:g}")
        if room < together:
            key = "run.workers.min" if isinstance(run.workers, WorkersRange) else "run.workers"
            unit = name if each == 1 else f"{name}s"
            raise UserError(
                f"{key} is {together}, each with {each:g} {unit}, but this machine has {has:g}; it takes {room} at most"
            )
    return gpus, cpus


def _room(each: float, has: float, *, whole: bool) -> int:
    """How many workers find room; where it is `whole`, a part of 1 is never taken from two. Ray counts like this, too.

    >>> _room(0.1, 0.3, whole=False), _room(0.6, 2, whole=True), _room(2, 3, whole=True)
    (3, 2, 1)
    """
    part, total, one = (round(10_000 * number) for number in (each, has, 1))
    if not part:
        return sys.maxsize
    return total // one * (one // part) if whole and part < one else total // part
