"""Who is to blame for a task that failed, by what Ray says of it.

Every death arrives with its cause, as no actor is restarted by Ray itself (max_restarts=0, max_task_retries=0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ray import exceptions as ray_errors

from pipeline.errors import LabelingError, RunError, ShardError, StoreError, UnreachableError, UserError
from pipeline.store import redact

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Blame: TypeAlias = Literal["shard", "shard for good", "storage", "nobody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Who is to blame for a failed task, in a sentence; and whether the worker can go on.

    blame: `shard` is a strike; `shard for good` sets it aside at once; `storage` did not answer, and the shard is
    leased again after a rest; `nobody`: it is leased again. recurring: a name for what stops the run if it comes
    several times in a row, as every shard might meet it.
    """

    blame: Blame
    reason: str
    alive: bool = False
    recurring: str | None = None


def verdict(error: ray_errors.RayError) -> Verdict:
    """Judge what Ray says of a task that failed."""
    text = " ".join(str(error).split())
    if isinstance(error, ray_errors.RayTaskError):
        return _of_exception(error.cause)
    if isinstance(error, ray_errors.ActorUnavailableError):
        return Verdict(blame="nobody", reason="the worker could not be reached")
    if isinstance(error, ray_errors.RayActorError) and (
        error.preempted or "node has died" in text or "node was" in text
    ):
        return Verdict(blame="nobody", reason="the worker's node is gone")
    if isinstance(error, ray_errors.OutOfMemoryError):
        return Verdict(blame="shard", reason="the worker was killed because its node ran out of memory")
    if isinstance(error, ray_errors.ActorDiedError) and error.actor_init_failed:  # such as where a package is missing
        return Verdict(blame="shard", reason=f"its process cannot be set up: {_last_line(str(error))}")
    detail = text.partition("Worker exit detail: ")[2] or text
    return Verdict(blame="shard", reason=f"the worker process died: {detail.partition(' Some common causes')[0]}")


def _last_line(text: str) -> str:
    """The last line of a traceback, which is what happened, without colours."""
    return _COLOUR.sub("", text).rstrip().rpartition("\n")[2].strip()


def _of_exception(cause: Exception) -> Verdict:
    """The verdict on what was raised in the worker."""
    if not isinstance(cause, LabelingError):  # the process may be spoilt, such as by a CUDA error
        return Verdict(blame="shard", reason=redact(f"{type(cause).__name__}: {cause}"))
    reason = redact(str(cause))
    match cause:
        case UnreachableError():
            return Verdict(blame="storage", reason=reason, alive=True)
        case RunError():
            return Verdict(blame="shard for good", reason=reason, alive=True, recurring="shards failed in their worker")
        case ShardError() | UserError():
            return Verdict(blame="shard for good", reason=reason, alive=True)
        case StoreError():
            return Verdict(blame="shard", reason=reason, alive=True, recurring="shards failed for storage")
    return Verdict(blame="shard", reason=reason, alive=True)
