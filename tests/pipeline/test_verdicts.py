"""Who is blamed for a death: a wrong verdict sets good shards aside, or has a bad one kill workers for ever."""

from __future__ import annotations

import pytest
from ray import exceptions as ray_errors
from ray.core.generated.common_pb2 import ActorDiedErrorContext

from pipeline.driver.verdicts import verdict
from pipeline.errors import (
    AccessError,
    NotFoundError,
    RunError,
    ShardError,
    StoreError,
    UnreachableError,
    UserError,
)

TRACEBACK = (
    "\x1b[36mray::Actor.__init__()\x1b[39m (pid=1)\nRuntimeError: The actor with name Actor failed to import.\n"
    "  File \"a.py\", line 12, in <module>\nModuleNotFoundError: No module named 'pycocotools'\x1b[0m\n"
)


def raised(cause: Exception) -> ray_errors.RayTaskError:
    return ray_errors.RayTaskError("label", TRACEBACK, cause)


def died(message: str) -> ray_errors.ActorDiedError:
    return ray_errors.ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=bytes(16)))


@pytest.mark.parametrize(
    ("error", "blame", "alive", "reason"),
    [
        (raised(ShardError("a.tar is damaged")), "shard for good", True, "a.tar is damaged"),
        (raised(UserError("no such column")), "shard for good", True, "no such column"),
        (raised(RunError("gave 3 results")), "shard for good", True, "gave 3 results"),
        (raised(UnreachableError("does not answer")), "storage", True, "does not answer"),
        (raised(AccessError("refused")), "shard", True, "refused"),
        (raised(NotFoundError("gone")), "shard", True, "gone"),
        (raised(StoreError("arrived damaged")), "shard", True, "arrived damaged"),
        (raised(RuntimeError("CUDA error")), "shard", False, "RuntimeError: CUDA error"),
        (raised(MemoryError("no room")), "shard", False, "MemoryError: no room"),
        (
            ray_errors.OutOfMemoryError("killed"),
            "shard",
            False,
            "the worker was killed because",
        ),
        (died("Its node has died."), "nobody", False, "the worker's node is gone"),
        (ray_errors.ActorUnavailableError("x", None), "nobody", False, "the worker could not be reached"),
        (
            died("Worker exit detail: End of file Some common causes include: ..."),
            "shard",
            False,
            "the worker process died: End of file",
        ),
        (
            ray_errors.ActorDiedError(raised(ModuleNotFoundError("No module named 'pycocotools'"))),
            "shard",
            False,
            "its process cannot be set up: ModuleNotFoundError: No module named 'pycocotools'",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_verdicts(error: ray_errors.RayError, blame: str, alive: bool, reason: str) -> None:
    """Each way of failing has one who is to blame, and a sentence without Ray's colours and advice."""
    found = verdict(error)
    assert (found.blame, found.alive) == (blame, alive)
    assert found.reason.startswith(reason)
    assert "\x1b" not in found.reason


def test_what_every_shard_might_meet_stops_the_run_if_it_recurs() -> None:
    """Wrong credentials, or a labeler that breaks its promise, must not set a million shards aside one by one."""
    assert verdict(raised(AccessError("refused"))).recurring
    assert verdict(raised(RunError("gave 3 results"))).recurring
    assert not verdict(raised(ShardError("a.tar is damaged"))).recurring
    assert not verdict(raised(RuntimeError("CUDA error"))).recurring
