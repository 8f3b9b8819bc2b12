"""The predictions that `jobs.evaluate` measures: those of a labeling run, of a COCO results json, or of a checkpoint.

A checkpoint labels the images of the truth first, by the engine of `jobs.label`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from jobs.command import some
from patchdct import evaluate
from pipeline import ledger, runs
from pipeline.coco_file import annotations_of
from pipeline.config import EvaluateConfig, InputConfig, LabelConfig, OutputConfig
from pipeline.datasets import Dataset, checking, documents
from pipeline.errors import NotFoundError, RunError, StoreError, UserError
from pipeline.keys import Keys
from pipeline.patchdct_labeler import read_weights
from pipeline.sources.common import has_image_name
from pipeline.store import Store, absolute, join, name, redact

log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["labeling run", "COCO results", "checkpoint"]
ACCEPTED = "a labeling run, a COCO results json or a checkpoint"

#: Images that one shard has when a checkpoint labels, so that a few hundred already keep several workers busy.
_PER_SHARD = 100
#: Images that are measured at once.
_AT_ONCE = evaluate.BLOCK
_CHECKPOINT_NAMES = (".pth", ".pt", ".pkl")
_CHECKPOINT_HEADS = (b"PK\x03\x04", b"\x80")  # of a zip archive, as torch.save writes, and of a pickle
_BLOCK = 1 << 22

#: The labeling engine speaks of keys that a config of `jobs.evaluate` has under other names.
_KEYS = {
    "labeler.weights": "predictions",
    "labeler.config": "model.config",
    "labeler.overrides": "model.overrides",
    "output.uri": "output",
    "input.images": "truth.images",
    "input.uri": "truth",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some images to measure on, and what is predicted there.

    image_ids: the truth's. results: COCO results with the truth's image ids. uris: where images are, as far as a run
    knows. quarantined: how many of the images could not be labelled.
    """

    image_ids: Sequence[int]
    results: Sequence[Mapping[str, Any]]
    uris: Mapping[int, str] = field(default_factory=dict)
    quarantined: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What is measured, and where it comes from.

    blocks: all images, some at a time; they come once, and reading them raises what reading predictions does.
    provenance: what the report says of the source. run: where that is, if it is a run. notes: what a reader must know
    before believing the figures, in sentences.
    """

    blocks: Iterator[Block]
    provenance: dict[str, Any]
    run: str | None = None
    notes: tuple[str, ...] = ()


def kind_of(uri: str, store: Store) -> Kind:
    """What the URI of predictions names.

    Raises:
        UserError: nothing, or a folder that is no run.
    """
    if store.exists(join(uri, "manifest.json")):
        return "labeling run"
    try:
        with store.open(uri) as stream:
            head = stream.read(8)
    except (NotFoundError, UserError) as error:
        raise UserError(f"predictions: {str(error).rstrip('.')}; give {ACCEPTED}") from error
    if name(uri).endswith(_CHECKPOINT_NAMES) or head.startswith(_CHECKPOINT_HEADS):
        return "checkpoint"
    return "COCO results"


def checksum(uri: str, store: Store) -> str:
    """The sha256 of an object, which is streamed."""
    found = hashlib.sha256()
    with store.open(uri) as source:
        while block := source.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def from_results(uri: str, truth: Mapping[str, Any], store: Store) -> Predictions:
    """The predictions of a COCO results json, on all images of the truth.

    Raises:
        UserError: it is none.
    """
    results = documents.parsed(uri, store=store, key="predictions", what=ACCEPTED)
    checking.check_results(results, f"predictions: {redact(uri)}")
    provenance = {"uri": redact(uri), "kind": "COCO results", "sha256": checksum(uri, store)}
    image_ids = [image["id"] for image in truth["images"]]
    parts = evaluate.blocks(results, image_ids, _AT_ONCE)
    return Predictions(
        blocks=(Block(image_ids=chosen, results=found) for chosen, found in parts), provenance=provenance
    )


def from_run(uri: str, truth: Mapping[str, Any], store: Store) -> Predictions:
    """The predictions of a labeling run, whose image keys are matched to the truth's file names.

    Raises:
        UserError, DataError: they do not fit the truth; or, with the last of the blocks, there are none, or their keys
            do not fit.
    """
    return _of_run(uri, truth, store, Keys(truth), f"predictions: {redact(uri)}")


def from_checkpoint(config: EvaluateConfig, truth: Dataset, store: Store) -> Predictions:
    """The predictions of a checkpoint: a run at `config.output`/run over the images, which is gone on with.

    Args:
        config: with `predictions` that are a checkpoint, `output` and `truth.images`.
        truth: with the places of its images.
        store: where all of it is.

    Raises:
        UserError, DataError: what is refused, before Ray is started where that can be told.
        RunError: some images are not labelled yet.
    """
    from pipeline import driver, progress  # they import Ray, which takes seconds

    assert config.predictions is not None, "jobs.evaluate.check sees to it"
    assert config.output is not None, "jobs.evaluate.check sees to it"
    where = f"predictions: {redact(config.predictions)}"
    if config.labeler.name == "patchdct":
        weights = read_weights(config.predictions, store, key="predictions")
        sha256, categories = weights.sha256, weights.categories
        del weights  # the driver does not label
    else:
        sha256, categories = checksum(config.predictions, store), None
    if categories is not None and config.labeler.categories is None:
        fit(categories, truth.coco, where)
    listing = join(config.output, "images.json")
    _put_listing(listing, truth, config, sha256, store)
    label = LabelConfig(
        input=InputConfig(uri=listing, format="coco", images=config.truth.images, images_per_shard=_PER_SHARD),
        output=OutputConfig(uri=join(config.output, "run"), formats=("parquet",)),
        labeler=replace(
            config.labeler,
            config=config.model.config,
            overrides=config.model.overrides,
            weights=config.predictions,
            max_instances=max(config.labeler.max_instances, config.max_detections),
        ),
        run=config.run,
    )
    try:
        with progress.reporter() as report:
            outcome = driver.run(label, report)
    except UserError as error:
        raise UserError(_renamed(str(error))) from error
    if not outcome.complete:
        now, why = outcome.snapshot, [outcome.interrupted, *(failure.error for failure in outcome.failures)]
        first = next((f" ({one})" for one in why if one), "")
        raise RunError(
            f"{redact(outcome.uri)}: {now.done} of {now.shards} shards are labelled{first}; run the same command again "
            "to go on"
        )
    found = _of_run(label.output.uri, truth.coco, store, None, where)
    provenance = {
        **found.provenance,
        "uri": redact(config.predictions),
        "kind": "checkpoint",
        "sha256": sha256,
        "run": redact(label.output.uri),
    }
    return replace(found, provenance=provenance)


def fit(found: Iterable[tuple[int, str]], truth: Mapping[str, Any], where: str) -> list[str]:
    """Make sure that predictions and truth mean the same by a category id.

    Args:
        found: (id, name) of the categories of the predictions.
        truth: COCO data, with `categories`.
        where: what the sentences begin with.

    Returns:
        Sentences on categories that only one of the two has.

    Raises:
        UserError: a name with two ids, an id with two names, or not one category in common.
    """
    theirs = dict(found)
    wanted = {row["id"]: str(row["name"]) for row in truth["categories"]}
    ids = {text: number for number, text in theirs.items()}
    for number, text in wanted.items():
        if ids.get(text, number) != number:
            raise UserError(f"{where}: category {text!r} has the id {ids[text]}, and in the truth {number}")
        if theirs.get(number, text) != text:
            raise UserError(f"{where}: category {number} is {theirs[number]!r}, and in the truth {text!r}")
    if not theirs.keys() & wanted.keys():
        raise UserError(
            f"{where} has no category of the truth: it has {some(theirs.values())}, the truth {some(wanted.values())}"
        )
    notes = []
    if unknown := [text for number, text in wanted.items() if number not in theirs]:
        notes.append(f"{where} does not know {len(unknown)} of the truth's {len(wanted)} categories: {some(unknown)}")
    if extra := [text for number, text in theirs.items() if number not in wanted]:
        notes.append(f"{where} has {len(extra)} categories that the truth lacks, left out: {some(extra)}")
    return notes


def _of_run(uri: str, truth: Mapping[str, Any], store: Store, keys: Keys | None, where: str) -> Predictions:
    """The masks of a run; its image ids are the truth's where there are no `keys` to match."""
    labels = runs.opened(store, uri)
    manifest = labels.manifest
    notes = fit(((one.id, one.name) for one in manifest.categories), truth, where)
    if left := len(ledger.pending(manifest, ledger.committed_ids(store, uri))):
        notes.append(f"{redact(uri)}: {left} shards are not committed; their images are not measured")
    if versions := labels.corrections.counting:
        corrected = sum(one.counts.get("images", 0) for one in versions)
        notes.append(f"{redact(uri)}: people have corrected {corrected} images, which are measured as they left them")
    return Predictions(
        blocks=_blocks(labels, keys),
        provenance={
            "uri": redact(uri),
            "kind": "labeling run",
            "run_id": manifest.run_id,
            "fingerprint": manifest.fingerprint,
            "created": manifest.created,
        },
        run=redact(uri),
        notes=tuple(notes),
    )


def _blocks(labels: runs.Labels, keys: Keys | None) -> Iterator[Block]:
    """The rows of a run. From a key on that matches no image they are read for its like alone, to name them."""
    empty = fit = True
    for rows in runs.batches(labels.all_rows(), _AT_ONCE):
        ids = keys.match(row.key for row in rows) if keys else {row.key: row.image_id for row in rows}
        empty, fit = False, fit and len(ids) == len(rows)
        if fit:
            yield Block(
                image_ids=list(ids.values()),
                results=[{**one, "image_id": ids[row.key]} for row in rows for one in annotations_of(row)],
                uris={ids[row.key]: row.uri for row in rows if has_image_name(name(row.uri))},  # not: the tar around it
                quarantined=sum(row.status == "quarantined" for row in rows),
            )
    if empty:
        raise UserError(f"predictions: {redact(labels.uri)} has no committed shard yet")
    if keys:
        keys.check()


def _put_listing(listing: str, truth: Dataset, config: EvaluateConfig, sha256: str, store: Store) -> None:
    """Write which images the run is over, and of which checkpoint it is: a run that is done asks no worker for that.

    Raises:
        UserError: the run there is of another checkpoint, or over other images.
    """
    root = absolute(config.truth.images or "")
    rows = []
    for row in truth.coco["images"]:
        uri, file_name = truth.uris[row["id"]], str(row["file_name"])
        rows.append({"id": row["id"], "file_name": file_name if join(root, file_name) == uri else uri})
    new = {"info": {"checkpoint": sha256}, "images": rows}
    try:
        old = json.loads(store.get(listing))
    except NotFoundError:
        store.put(listing, json.dumps(new).encode())
        return
    except ValueError as error:
        raise StoreError(f"{redact(listing)} is damaged; give another output") from error
    if old != new:
        what = "another checkpoint" if old.get("info") != new["info"] else "other images"
        raise UserError(f"output: {redact(config.output or '')} holds the run of {what}; give another output")


def _renamed(sentence: str) -> str:
    for theirs, ours in _KEYS.items():
        sentence = sentence.replace(theirs, ours)
    return sentence
