"""What a worker asks of Ray, and what Ray on one machine has no room for."""

from __future__ import annotations

import pytest

from pipeline.config import RunConfig, TrainRunConfig, WorkersRange
from pipeline.errors import UserError
from pipeline.founding import worker_needs

LAPTOP, STATION = {"CPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}


def run(**settings: object) -> TrainRunConfig:
    return TrainRunConfig(name="t", storage="/s", **settings)  # type: ignore[arg-type]


def test_defaults() -> None:
    """A worker without its GPU would train for weeks; one that asks for a GPU where there is none would never start."""
    for one in (run(), RunConfig()):
        assert worker_needs(one, LAPTOP, in_ray_job=False) == (0, 1)
        assert worker_needs(one, STATION, in_ray_job=False) == (1, 1)
    assert worker_needs(run(gpus_per_worker=0, cpus_per_worker=4), STATION, in_ray_job=False) == (0, 4)
    assert worker_needs(run(gpus_per_worker=0.5), STATION, in_ray_job=False) == (0.5, 1)


REFUSED = [
    (LAPTOP, run(workers=16), 16, "run.workers is 16, each with 1 CPU, but this machine has 2; it takes 2 at most"),
    (
        LAPTOP,
        run(workers=WorkersRange(min=3, max=4)),
        3,
        "run.workers.min is 3, each with 1 CPU, but this machine has 2; it takes 2 at most",
    ),
    (STATION, run(workers=3), 3, "run.workers is 3, each with 1 GPU, but this machine has 2; it takes 2 at most"),
    (
        STATION,
        run(workers=3, gpus_per_worker=0.6),
        3,
        "run.workers is 3, each with 0.6 GPUs, but this machine has 2; it takes 2 at most",
    ),
    (
        STATION,
        run(workers=2, cpus_per_worker=12),
        2,
        "run.workers is 2, each with 12 CPUs, but this machine has 16; it takes 1 at most",
    ),
    (STATION, run(gpus_per_worker=4), 1, "run.gpus_per_worker is 4, but this machine has 2"),
    (LAPTOP, RunConfig(cpus_per_worker=4), 1, "run.cpus_per_worker is 4, but this machine has 2"),
    (LAPTOP, RunConfig(gpus_per_worker=0.5), 1, "run.gpus_per_worker is 0.5, but this machine has 0"),
]


@pytest.mark.parametrize(("there", "config", "together", "sentence"), REFUSED, ids=[case[-1] for case in REFUSED])
def test_no_room(there: dict[str, float], config: RunConfig | TrainRunConfig, together: int, sentence: str) -> None:
    """Ray waits for ever, in silence, for what a single machine will never have."""
    with pytest.raises(UserError) as caught:
        worker_needs(config, there, in_ray_job=False, together=together)
    assert str(caught.value) == sentence


def test_room_to_the_last_part() -> None:
    """0.1 + 0.1 + 0.1 is more than 0.3 only to a computer; what fits must not be refused."""
    assert worker_needs(run(cpus_per_worker=0.1), {"CPU": 0.3}, in_ray_job=False, together=3) == (0, 0.1)
    assert worker_needs(run(gpus_per_worker=0.5), STATION, in_ray_job=False, together=4) == (0.5, 1)
    assert worker_needs(run(workers=16), {"CPU": 16.0}, in_ray_job=False, together=16) == (0, 1)


def test_a_cluster_may_grow() -> None:
    """Nodes join a cluster because something waits for them; it must not be refused what it does not have yet."""
    assert worker_needs(run(workers=16), LAPTOP, in_ray_job=True, together=16) == (0, 1)
    assert worker_needs(run(workers=16, address="10.0.0.1:6379"), LAPTOP, in_ray_job=False, together=16) == (0, 1)
    with pytest.raises(UserError, match=r"run\.workers is 16"):
        worker_needs(run(workers=16, address="local"), LAPTOP, in_ray_job=True, together=16)
