"""What a training keeps on storage: checkpoints to go on from, weights to label with, curves to look at.

The checkpoints are those of `pipeline.checkpoints`; everything else below the training's root is made anew from one of
them at any time.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchdct import checkpoint, distributed
from patchdct.train import Trainer
from pipeline import __version__, checkpoints, curves, ledger
from pipeline.config import TrainConfig
from pipeline.errors import UserError
from pipeline.store import Store, join, redact

log = logging.getLogger("jobs.train")

#: The figure by which a checkpoint is the best.
BEST = "val mask AP"

#: The files of a checkpoint: what a training goes on from, and what labels.
STATE, WEIGHTS = "state.pth", "model.pth"
#: Those of the best one, beside the last one's.
BEST_WEIGHTS = "best.pth"

Row = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A checkpoint as it was read: the state of the trainer, the history, and the images that were skipped."""

    trainer: Mapping[str, Any]
    history: list[Row]
    skipped: Mapping[str, str]


def root_of(config: TrainConfig) -> str:
    """Where a training lives on storage."""
    return join(config.run.storage, config.run.name)


class Keeper:
    """The checkpoints of one training, as one of its workers sees them. All workers call; worker 0 writes."""

    def __init__(self, config: TrainConfig, store: Store, depends_on: Mapping[str, Any]) -> None:
        """`depends_on`: what the weights depend on, plain data; a training that goes on must agree in it."""
        self._config, self._store, self._root, self._depends_on = config, store, root_of(config), depends_on
        self._first = distributed.rank() == 0

    def newest(self) -> Kept | None:
        """The newest checkpoint that is whole, read by every worker.

        Raises:
            UserError: it was begun with another model, schedule or data.
            StoreError: storage does not work, or no checkpoint is whole.
        """
        with tempfile.TemporaryDirectory() as name:
            folder, saved = Path(name), None
            if self._first and (
                restored := checkpoints.restore(self._store, self._root, [STATE, WEIGHTS, checkpoints.HISTORY], folder)
            ):
                saved = restored[0]
            saved = distributed.from_first(saved)
            if saved is None:
                return None
            if not self._first:
                checkpoints.fetch(self._store, self._root, saved, STATE, folder)
            state = checkpoint.read_state(folder / STATE)
        self._agree(ledger.differences(state["depends_on"], self._depends_on))
        history = checkpoints.read_history(self._store, self._root, saved)
        return Kept(trainer=state["trainer"], history=history, skipped=state["skipped"])

    def save(
        self,
        trainer: Trainer,
        history: Sequence[Row],
        skipped: Mapping[str, str],
        about: Mapping[str, Any],
        *,
        categories: Sequence[tuple[int, str]],
        config_text: str,
    ) -> None:
        """Write a checkpoint, the best weights where it holds these, and the curves so far.

        Args:
            trainer: the state to keep; its `weights` are what is labelled with.
            history: all rows, the last of which is of this step.
            skipped: images that were skipped, with reasons.
            about: provenance for the weights.
            categories: (id, name) in the order of the model's classes.
            config_text: the model config, as YAML.

        Raises:
            StoreError, RunError: storage does not work, or another training writes there, too.
        """
        if not self._first:
            return
        step = trainer.step
        provenance = {
            "version": __version__,
            "steps": step,
            "of": trainer.schedule.steps,
            "batch_size": trainer.schedule.batch_size,
            "seconds": round(_seconds(history)),
            "skipped": len(skipped),
            "figures": figures(history),
            **about,
        }
        with tempfile.TemporaryDirectory() as folder:
            weights, state = Path(folder) / WEIGHTS, Path(folder) / STATE
            checkpoint.save_checkpoint(
                weights,
                trainer.weights.state_dict(),
                categories=categories,
                config_text=config_text,
                provenance=provenance,
                half=self._config.run.half,
            )
            checkpoint.save_state(
                state, {"trainer": trainer.state(), "depends_on": dict(self._depends_on), "skipped": dict(skipped)}
            )
            checkpoints.save(
                self._store,
                self._root,
                step=step,
                files={WEIGHTS: weights, STATE: state},
                metrics=figures(history[-1:]),
                history=history,
            )
            best = checkpoints.best(checkpoints.saved(self._store, self._root), BEST)
            if best is not None and best.step == step:
                self._store.put(join(self._root, BEST_WEIGHTS), weights)
        checkpoints.prune(self._store, self._root, keep=self._config.run.keep, best_metric=BEST)
        self._draw(history)
        log.info("wrote the checkpoint of step %d", step)

    def finish(self) -> None:
        """Publish the final and the best weights, whatever is in their places: a death may have left older ones there.

        Raises:
            StoreError: storage does not work, or has damaged a checkpoint.
        """
        if not self._first:
            return
        saved = checkpoints.saved(self._store, self._root)
        for name, source in ((WEIGHTS, saved[-1]), (BEST_WEIGHTS, checkpoints.best(saved, BEST))):
            if source is not None:
                with tempfile.TemporaryDirectory() as folder:
                    weights = checkpoints.fetch(self._store, self._root, source, WEIGHTS, Path(folder))
                    self._store.put(join(self._root, name), weights)

    def _agree(self, differences: Sequence[str]) -> None:
        if not differences:
            return
        what = f"{redact(self._root)} holds a training that was begun differently ({'; '.join(differences)})"
        if not self._config.run.accept_changes:
            raise UserError(f"{what}; give another run.name, or go on all the same with --set run.accept_changes=true")
        if self._first:
            log.warning("%s; going on all the same, as run.accept_changes says", what)

    def _draw(self, history: Sequence[Row]) -> None:
        name = self._config.run.name
        self._store.put(join(self._root, "curves.png"), curves.draw({"": history}, title=name))
        if "tensorboard" in self._config.run.trackers:
            events = f"events.out.tfevents.0.{name.replace('/', '-')}"
            self._store.put(join(self._root, "tensorboard", events), curves.tensorboard(history))


def figures(history: Sequence[Row]) -> dict[str, float]:
    """The newest loss and figures of validation."""
    newest: Row = {}
    for row in history:
        newest |= {name: value for name, value in row.items() if name.startswith("val ") or name == "loss"}
    return newest


def _seconds(history: Sequence[Row]) -> float:
    """How long all steps took together."""
    steps = [0.0, *(row["step"] for row in history)]
    return sum((row["step"] - before) * row["seconds"] for row, before in zip(history, steps, strict=False))
