"""What the driver asks of Ray besides work: a connection, places, and quiet on SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Of what workers print, only our own lines, which begin with the time, are to be seen; it is read at import.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"^(?!\d\d:\d\d:\d\d )")

import grpc
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.exceptions import AuthenticationError

from pipeline import founding
from pipeline.config import LabelConfig, WorkersRange
from pipeline.errors import RunError, UserError

CONNECT_S = 5.0
#: Set by Ray in the process that `ray job submit` starts.
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def pool_size(config: LabelConfig) -> tuple[int, int, dict[str, float]]:
    """How many workers at least (else the user is told) and at most, and what each one asks of Ray.

    Raises:
        UserError: a worker for which this machine has no room.
    """
    there = cluster_resources()
    gpus, cpus = founding.worker_needs(config.run, there, in_ray_job=RAY_JOB in os.environ)
    workers = config.run.workers
    if workers is None:
        workers = max(1, int(there.get("GPU", 0) / gpus)) if gpus else 1
    least, most = (workers.min, workers.max) if isinstance(workers, WorkersRange) else (1, workers)
    return least, most, {"num_gpus": gpus, "num_cpus": cpus}


def cluster_resources() -> dict[str, float]:
    """What the connected cluster has of each resource, such as CPU and GPU."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own
    return resources


@contextmanager
def cluster(address: str | None, *, show_workers: bool = False) -> Iterator[None]:
    """A connection to Ray: to the address, to the cluster of the Ray job that this is, or to a local one of its own.

    What workers print is shown where `show_workers` says so.

    Raises:
        UserError: no cluster answers.
        RunError: a local one does not start, as on a machine that is overloaded.
    """
    target = address or ("auto" if RAY_JOB in os.environ else "local")
    if address not in (None, "auto", "local"):
        _check_token(target)
    try:
        local: dict[str, Any] = {"include_dashboard": False} if target == "local" else {}
        ray.init(address=target, log_to_driver=show_workers, logging_level=logging.ERROR, **local)
    except Exception as error:
        what = " ".join(str(error).split())
        if target == "local":  # Ray raises a bare Exception where its processes are not up within half a minute
            raise RunError(f"Ray did not start on this machine: {what}") from error
        if not isinstance(error, ConnectionError | ValueError | RuntimeError):
            raise
        raise UserError(f"run.address is {target!r}, where no Ray cluster answers: {what}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_token(address: str) -> None:
    """Make sure that a cluster takes our token; Ray itself tries for a minute, and then says that no cluster answers.

    Raises:
        UserError: it asks for another one, or for one where we have none.
    """
    asked = (
        f"run.address is {address!r}, where Ray asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
        "~/.ray/auth_token to the token of that cluster"
    )
    of_client = address.startswith("ray://")
    method = "/ray.rpc.RayletDriver/ClusterInfo" if of_client else "/ray.rpc.NodeInfoGcsService/GetClusterId"
    try:
        headers = get_auth_headers_if_auth_enabled({})
        with grpc.insecure_channel(address.removeprefix("ray://")) as channel:
            ask = channel.unary_unary(method)
            ask(b"", timeout=CONNECT_S, metadata=[(name.lower(), value) for name, value in headers.items()])
    except AuthenticationError as error:
        raise UserError(asked) from error
    except grpc.RpcError as error:  # whatever else it may be, Ray says it better
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(asked) from error


@contextmanager
def caught_signals() -> Iterator[list[str]]:
    """The names of SIGINT and SIGTERM as they come in, instead of an exception in the middle of anything."""
    caught: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        caught.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
