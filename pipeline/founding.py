"""Opening a run: planned and founded where there is none, checked and taken up again where there is one."""

from __future__ import annotations

import logging
import os
import re
import socket
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from pipeline import __version__, labelers, ledger
from pipeline.config import LabelConfig
from pipeline.errors import StoreError, UnreachableError, UserError
from pipeline.plan import Planned, plan
from pipeline.records import SCHEMA_VERSION, LabelerInfo, Manifest
from pipeline.store import Store, absolute, join, redact, scheme
from pipeline.store.uris import HIDDEN

log = logging.getLogger("pipeline.run")

_CONNECT_S = 5.0
_PROBE = re.compile(rf"((?<!/)/)?{re.escape(HIDDEN)}probe-\w+")


def located(config: LabelConfig, *, in_ray_job: bool = False) -> LabelConfig:
    """The config with absolute URIs of input and output, so that they mean the same to every process.

    Raises:
        UserError: a relative path for the output of a Ray job, whose working directory is removed after it.
    """
    output = config.output.uri
    if in_ray_job and not scheme(output) and not os.path.isabs(output):  # noqa: PTH117 a URI, not a Path
        raise UserError(
            f"output.uri is {output!r}, which in a Ray job would lie in a folder that is removed with the job; give an "
            "absolute path or a URI such as s3://bucket/prefix"
        )
    return replace(
        config,
        input=replace(
            config.input,
            uri=tuple(absolute(uri) for uri in config.input.uris),
            images=absolute(config.input.images) if config.input.images else None,
        ),
        output=replace(config.output, uri=absolute(output)),
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
        _agree(config, ledger.differences(manifest.config, config.labels_depend_on()))
        return manifest, True
    shards = []
    for planned in planned_shards(config, store):
        if planned.listing is not None:
            store.put(join(uri, planned.shard.uri), planned.listing)
        shards.append(planned.shard)
    manifest = Manifest(
        run_id=uuid.uuid4().hex[:12],
        schema_version=SCHEMA_VERSION,
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.labels_depend_on(),
        fingerprint="",
        categories=(),
        shards=tuple(shards),
    )
    return manifest, False


def found(config: LabelConfig, manifest: Manifest, labeler: LabelerInfo, store: Store) -> Manifest:
    """Write the manifest of a new run, now that its labeler is known.

    Raises:
        UserError: another driver founded a run there in the meantime.
    """
    manifest = replace(manifest, fingerprint=labeler.fingerprint, categories=labeler.categories)
    if not ledger.write_manifest(store, config.output.uri, manifest):
        raise UserError(
            f"{redact(config.output.uri)}: another driver has just founded a run there; run again to join it"
        )
    return manifest


def check_labeler(config: LabelConfig, manifest: Manifest, labeler: LabelerInfo) -> None:
    """Make sure that a run goes on with the labeler that it was founded with.

    Raises:
        UserError: the labeler is another one.
    """
    if manifest.fingerprint != labeler.fingerprint:
        _agree(config, [f"labeler fingerprint: {manifest.fingerprint} -> {labeler.fingerprint}"])


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
