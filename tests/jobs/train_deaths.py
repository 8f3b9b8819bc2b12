"""Trains the same model four times through `ray job submit`, on two gloo workers, and kills things on the way.

    python -m tests.jobs.train_deaths FOLDER

Undisturbed; with a worker killed; with the driver killed and the job submitted again; with a node drained, after which
one worker goes on alone. FOLDER gets curves.png, the four loss curves over each other; standard output a line for each.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from ray.job_submission import JobSubmissionClient

from patchdct import scenes
from patchdct.checkpoint import read_checkpoint
from pipeline import checkpoints, curves
from pipeline.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, EVERY, DISTURBED_AT = 48, 8, 16
NARROW = {
    **{"MODEL.FPN.OUT_CHANNELS": 16, "MODEL.ROI_BOX_HEAD.FC_DIM": 32, "MODEL.ROI_MASK_HEAD.CONV_DIM": 16},
    **{"MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES": 32, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32},
    **{"INPUT.MIN_SIZE_TRAIN": "(96, 128)"},
}
DASHBOARD = 8277
ADDRESS = f"http://127.0.0.1:{DASHBOARD}"
PATIENCE_S = 1200

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "OMP_NUM_THREADS": "1"}
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (as Ray spells it)
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a training went: its losses by step, the steps that were taken again, its weights by name."""

    name: str
    losses: list[float]
    again: int
    seconds: float
    workers: int
    weights: dict[str, np.ndarray]


def write_config(folder: Path) -> Path:
    """The scenes to train on, and what to train."""
    truth = scenes.write_scenes(folder / "scenes", images=60, seed=21, size=128)
    raw = {
        "data": {"train": {"annotations": str(truth), "images": str(folder / "scenes/images")}},
        "model": {
            "config": "configs/model/patchdct_demo.yaml",
            "overrides": [str(word) for pair in NARROW.items() for word in pair],
        },
        "schedule": {
            **{"steps": STEPS, "batch_size": 4, "optimizer": "adamw", "lr": 5e-4, "warmup": 5, "decay": "cosine"},
            **{"weight_decay": 0.05, "clip": 1.0, "ema": 0.9},
        },
        "run": {
            **{"name": "?", "storage": str(folder), "workers": 2, "cpus_per_worker": 1, "threads": 1, "seed": 5},
            **{"checkpoint_every": EVERY, "log_every": 1, "keep": 2},
        },
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@contextmanager
def nodes() -> Iterator[None]:
    """A head that computes nothing, and two nodes of one CPU each; RAY_ADDRESS names them."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": DASHBOARD}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


def ray(*words: str) -> str:
    done = subprocess.run(["ray", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


class Job:
    """A training as a Ray job."""

    def __init__(self, config: Path, name: str, attempt: int, *settings: str) -> None:
        self.id = f"{name}-{attempt}-{os.getpid()}"
        words = ["python", "-m", "jobs.train", "--config", str(config), "--set", f"run.name={name}"]
        words += [word for setting in settings for word in ("--set", setting)]
        said = ray(
            *("job", "submit", "--address", ADDRESS, "--working-dir", ".", "--no-wait", "--submission-id", self.id),
            *("--", *words),
        )
        if "successfully" not in said:
            raise SystemExit(said)
        self._client = JobSubmissionClient(ADDRESS)

    def wait(self, until: Callable[[], bool] = lambda: False) -> str:
        """Wait for the end of the job, or for something else -> its status."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = self._client.get_job_status(self.id)
            if status.is_terminal() or until():
                return str(status.value)
            time.sleep(0.5)
        raise SystemExit(f"{self.id} takes longer than {PATIENCE_S} s\n{self.log()[-4000:]}")

    def log(self) -> str:
        return str(self._client.get_job_logs(self.id))


def processes(*words: str) -> list[int]:
    """The processes with all these words in their command lines, by number."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended since
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in line for word in words):
                found.append(int(entry.parent.name))
    return sorted(found)


def kill_a_worker(name: str) -> None:
    del name
    os.kill(processes("ray::RayTrainWorker")[-1], signal.SIGKILL)


def kill_the_driver(name: str) -> None:
    for number in processes("-m jobs.train", f"run.name={name}"):
        os.kill(number, signal.SIGKILL)


def drain_a_node(name: str) -> None:
    del name
    import ray as client

    client.init(address=os.environ["RAY_ADDRESS"], logging_level="ERROR")
    node = next(node["NodeID"] for node in client.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    gcs = client.get_runtime_context().gcs_address
    client.shutdown()
    print(
        ray(
            *("drain-node", "--address", gcs, "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "taken away", "--deadline-remaining-seconds", "4"),
        ).strip(),
        file=sys.stderr,
    )


def train(
    config: Path, name: str, disturb: Callable[[str], None] | None = None, settings: Sequence[str] = ()
) -> Training:
    """Train as a job, disturbed once a checkpoint of step DISTURBED_AT is there; submitted again if it failed."""
    store, root = Store(), str(config.parent / name)
    start, logs = time.monotonic(), []

    def far_enough() -> bool:
        return any(saved.step >= DISTURBED_AT for saved in checkpoints.saved(store, root))

    job = Job(config, name, 1, *settings)
    if disturb and job.wait(far_enough) == "RUNNING":
        disturb(name)
    status = job.wait()
    logs.append(job.log())
    if status != "SUCCEEDED" and disturb is kill_the_driver:
        job = Job(config, name, 2, *settings)
        status = job.wait()
        logs.append(job.log())
    (config.parent / f"{name}.log").write_text("\n".join(logs))
    if status != "SUCCEEDED":
        raise SystemExit(f"{name} {status}\n{logs[-1][-4000:]}")
    last = checkpoints.saved(store, root)[-1]
    history = checkpoints.read_history(store, root, last)
    steps = [row["step"] for row in history]
    assert steps == [float(step) for step in range(1, STEPS + 1)], f"{name} has the steps {steps}"
    weights = read_checkpoint(Path(root) / "model.pth")
    assert weights.provenance is not None
    return Training(
        name=name,
        losses=[row["loss"] for row in history],
        again=len(re.findall(rf"step \d+/{STEPS} ", "\n".join(logs))) - STEPS,
        seconds=time.monotonic() - start,
        workers=int(str(weights.provenance["workers"])),
        weights={key: tensor.numpy() for key, tensor in weights.state.items()},
    )


def main(folder: Path) -> list[dict[str, object]]:
    """All four -> how each compares with the first."""
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(folder)
    with nodes():
        trainings = [
            train(config, "undisturbed"),
            train(config, "worker-killed", kill_a_worker),
            train(config, "driver-killed", kill_the_driver),
            train(config, "node-drained", drain_a_node, ["run.workers={min: 1, max: 2}"]),
        ]
    first = trainings[0]
    found = []
    for one in trainings:
        apart = [abs(a - b) / b for a, b in zip(one.losses, first.losses, strict=True)]
        found.append(
            {
                "training": one.name,
                "last_loss": one.losses[-1],
                "greatest_difference_of_a_loss": max(apart),
                "steps_that_differ": sum(value > 0 for value in apart),
                "weights_equal": all(np.array_equal(one.weights[key], first.weights[key]) for key in first.weights),
                "steps_taken_again": one.again,
                "workers_at_the_end": one.workers,
                "seconds": round(one.seconds),
            }
        )
    histories = {
        one.name: [{"step": float(number), "loss": loss} for number, loss in enumerate(one.losses, start=1)]
        for one in trainings
    }
    (folder / "curves.png").write_bytes(curves.draw(histories, title="one training, disturbed"))
    return found


if __name__ == "__main__":
    for line in main(Path(sys.argv[1]).resolve()):
        print(json.dumps(line))
