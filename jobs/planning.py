"""What a training is, as one of its workers reads it: data, model config, schedule, and its share of each batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.command import some
from patchdct import data, distributed, norms, schedule
from patchdct.config import load_config
from patchdct.errors import DataError
from pipeline import datasets
from pipeline.config import TrainConfig
from pipeline.errors import UserError
from pipeline.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained on and how.

    missing: images that are annotated and not there. shares: the places of a batch that this worker takes, in
    micro-batches. notes: sentences for the log.
    """

    truth: data.Truth
    val: datasets.Dataset | None
    missing: tuple[str, ...]
    cfg: Any
    schedule: schedule.Schedule
    shares: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]


def make(config: TrainConfig, model: str, store: Store) -> Plan:
    """Read the data sets and check that everything goes together. No other worker is needed for it.

    Args:
        config: see `fitting.work`.
        model: the model config, as YAML; the data say how many classes it has.
        store: where the data sets are.

    Raises:
        UserError, ModelError, DataError: something cannot be trained with.
    """
    train_set = _read_sets(config, "train", store)
    val = _read_sets(config, "val", store) if config.data.val_sets else None
    truth = data.truth_of(train_set.coco, train_set.uris, name=train_set.name)
    _check_categories(truth, val)
    cfg = load_config(text=model, overrides=("MODEL.ROI_HEADS.NUM_CLASSES", str(len(truth.categories))))
    plan, notes = schedule.resolve(cfg, **asdict(config.schedule))
    world, device = distributed.world(), distributed.device()
    shares = _shares(plan)
    notes += norms.check_norms(cfg, device, workers=world, batch_size=plan.batch_size)
    return Plan(
        truth=truth,
        val=val,
        missing=(*train_set.missing, *(val.missing if val else ())),
        cfg=cfg,
        schedule=plan,
        shares=shares,
        notes=(schedule.describe_shares(plan.batch_size, world, plan.micro_batch), *notes),
    )


def _read_sets(config: TrainConfig, which: Literal["train", "val"], store: Store) -> datasets.Dataset:
    sets = config.data.train_sets if which == "train" else config.data.val_sets
    cache = Path(config.data.cache) if config.data.cache else None
    one = len(sets) == 1
    return datasets.merge(
        [
            datasets.read(each, store, key=f"data.{which}" if one else f"data.{which}[{i}]", cache=cache)
            for i, each in enumerate(sets)
        ]
    )


def _check_categories(truth: data.Truth, val: datasets.Dataset | None) -> None:
    if val is None:
        return
    theirs = tuple(sorted((int(c["id"]), str(c["name"])) for c in val.coco["categories"]))
    if theirs != truth.categories:
        raise UserError(
            f"data.val has the categories {some(theirs)}, and data.train {some(truth.categories)}; they must be "
            "the same"
        )


def _shares(plan: schedule.Schedule) -> tuple[tuple[int, ...], ...]:
    world = distributed.world()
    try:
        return data.shares(plan.batch_size, rank=distributed.rank(), world=world, micro_batch=plan.micro_batch)
    except DataError as error:
        raise UserError(f"schedule.batch_size: {error} of run.workers") from error
