"""Experiment trackers beside the training's own curves: W&B and MLflow, where they are named and installed.

Both are taken up again under the same run id. A training that goes on from a checkpoint repeats the steps after it; a
step that the server knows is not sent again. (W&B offline knows no earlier process, so `wandb sync` may meet a step
twice.) Where a server does not answer, the training goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from pipeline.errors import UserError
from pipeline.store import redact

log = logging.getLogger(__name__)

#: How a training ended; one that is killed may go on later.
Status: TypeAlias = Literal["finished", "failed", "killed"]

#: Where runs go unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise.
PROJECT = "patchlabel"

_TAG = "patchlabel.run_id"
_AXES = ("step", "time")


class Tracker(Protocol):
    """What takes rows of `pipeline.curves`."""

    def log(self, row: Mapping[str, float]) -> None:
        """Take a row, unless its step is known."""

    def close(self, status: Status) -> None:
        """Send what is left, and say how the training ended."""


class Trackers:
    """Several trackers as one; none is as good as some."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def __len__(self) -> int:
        return len(self._trackers)

    def log(self, row: Mapping[str, float]) -> None:
        """Give a row to each."""
        for tracker in self._trackers:
            tracker.log(row)

    def close(self, status: Status) -> None:
        """Close each."""
        for tracker in self._trackers:
            tracker.close(status)


def open_trackers(
    names: Sequence[str],
    *,
    run_name: str,
    run_id: str,
    config: Mapping[str, object],
    folder: Path | None = None,
) -> Trackers:
    """Open trackers, or take them up again.

    Servers, projects and credentials come from the environment, as W&B and MLflow read them (WANDB_API_KEY, WANDB_MODE,
    WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and more).

    Args:
        names: wandb, mlflow; "tensorboard", which is a file of `pipeline.curves`, is passed over.
        run_name: what people see.
        run_id: any text that is the same for a training each time it goes on, and that no other training has.
        config: of the training; secrets in URLs are left out.
        folder: where files go that a tracker keeps locally; None: where it wants to.

    Raises:
        UserError: one of them is not known, not installed, or refuses its settings.
    """
    chosen = [name for name in dict.fromkeys(names) if name != "tensorboard"]
    for name in chosen:
        if name not in _TRACKERS:
            raise UserError(f"run.trackers names {name}; accepted are tensorboard, {', '.join(_TRACKERS)}.")
        _import(name)  # all of them, before one is told of a run
    settings = dict(_leaves(config))
    opened = (_TRACKERS[name](run_name, _identity(run_id), settings, folder) for name in chosen)
    return Trackers(tracker for tracker in opened if tracker is not None)


class _Wandb:
    """A run of W&B, which sends in a process of its own, and waits there while its server does not answer."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, row: Mapping[str, float]) -> None:
        if row["step"] >= self._run.step:
            self._run.log({name: value for name, value in row.items() if name not in _AXES}, step=int(row["step"]))

    def close(self, status: Status) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


def _open_wandb(run_name: str, run_id: str, config: Mapping[str, object], folder: Path | None) -> Tracker | None:
    wandb = _import("wandb")
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name,
            id=run_id,
            resume="allow",
            config=dict(config),
            allow_val_change=True,
            dir=folder,
            settings=wandb.Settings(console="off", silent=True),
        )
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise UserError(f"run.trackers: wandb refuses its settings: {_sentence(error)}.") from None
    except wandb.errors.Error as error:
        log.warning("going on without wandb: %s", _sentence(error))
        return None
    return _Wandb(run)


class _Mlflow:
    """A run of MLflow. Rows are sent by its threads, so that a slow server does not hold up the training."""

    def __init__(self, mlflow: Any, client: Any, run_id: str, last: int) -> None:
        self._mlflow, self._client, self._run_id, self._last = mlflow, client, run_id, last
        self._sent: list[Any] = []

    def log(self, row: Mapping[str, float]) -> None:
        step, time_ms = int(row["step"]), int(row.get("time", 0) * 1000)
        if step <= self._last:
            return
        metrics = [
            self._mlflow.entities.Metric(_metric(name), value, time_ms, step)
            for name, value in row.items()
            if name not in _AXES and math.isfinite(value)
        ]
        self._sent.append(self._client.log_batch(self._run_id, metrics, synchronous=False))
        self._last = step

    def close(self, status: Status) -> None:
        try:
            for sent in self._sent:
                sent.wait()
            self._client.set_terminated(self._run_id, status.upper())
        except self._mlflow.exceptions.MlflowException as error:
            log.warning("mlflow did not get all rows: %s", _sentence(error))


def _open_mlflow(run_name: str, run_id: str, config: Mapping[str, object], folder: Path | None) -> Tracker | None:
    mlflow = _import("mlflow")
    local = None if folder is None or os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{folder / 'mlflow.db'}"
    experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    try:
        client = mlflow.MlflowClient(tracking_uri=local)
        experiment = client.get_experiment_by_name(experiment_name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(experiment_name)
        found = client.search_runs([experiment_id], filter_string=f"tags.`{_TAG}` = '{run_id}'", max_results=1)
        if found:
            run = found[0]
            client.update_run(run.info.run_id, status="RUNNING")
            points = (client.get_metric_history(run.info.run_id, name) for name in run.data.metrics)
            last = max((point.step for each in points for point in each), default=-1)
            return _Mlflow(mlflow, client, run.info.run_id, last)
        run = client.create_run(experiment_id, run_name=run_name, tags={_TAG: run_id})
        params = [mlflow.entities.Param(_metric(key), str(value)[:6000]) for key, value in config.items()]
        client.log_batch(run.info.run_id, params=params[:100])
    except mlflow.exceptions.MlflowException as error:
        if error.get_http_status_code() in (400, 401, 403, 404):
            raise UserError(f"run.trackers: mlflow refuses its settings: {_sentence(error)}.") from None
        log.warning("going on without mlflow: %s", _sentence(error))
        return None
    return _Mlflow(mlflow, client, run.info.run_id, -1)


_TRACKERS: dict[str, Callable[[str, str, Mapping[str, object], Path | None], Tracker | None]] = {
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
}


def _import(name: str) -> Any:
    """A package that need not be there. A folder that it left behind, say ./wandb, is not the package."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise UserError(f"run.trackers names {name}, which is not installed; pip install {name}")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"run.trackers names {name}, which cannot be imported: {_sentence(error)}.") from None


def _identity(run_id: str) -> str:
    """A run id that trackers take: few kinds of characters, and not too many of them.

    >>> _identity("s3://bucket/training")
    's3-bucket-training-3b8913c82b5d'
    """
    readable = re.sub(r"[^\w.]+", "-", redact(run_id), flags=re.ASCII)
    return f"{readable[-40:].lstrip('-')}-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"


def _metric(name: str) -> str:
    """A name that MLflow takes.

    >>> _metric("val mask AP*"), _metric("data.train[0].annotations")
    ('val mask AP_', 'data.train_0_.annotations')
    """
    return re.sub(r"[^\w ./-]", "_", name, flags=re.ASCII)


def _leaves(config: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Each value of a config under its dotted key.

    >>> dict(_leaves({"a": {"b": 1, "c": [{"d": "s3://me:secret@host/x"}]}}))
    {'a.b': 1, 'a.c': "[{'d': 's3://***@host/x'}]"}
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            plain = value is None or isinstance(value, bool | int | float)
            yield f"{above}{key}", value if plain else redact(str(value))


def _sentence(error: Exception) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
