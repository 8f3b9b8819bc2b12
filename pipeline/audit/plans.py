"""The plan of an audit: a sample, how it was drawn and of what, as a file that the certificate goes by."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pipeline import __version__, dates
from pipeline.accounting import digest_of
from pipeline.audit.sampling import Drawn, Sampler, Scene, Slices
from pipeline.config.types import STRICT
from pipeline.corrections import Corrections
from pipeline.errors import NotFoundError, UserError
from pipeline.records import Category
from pipeline.runs import Labels
from pipeline.store import Store, join, redact

FILE = "audit.json"
_LIMIT = 1 << 30  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an audit answers for: sha256 over all commits, in the order of the manifest, and over all corrections."""

    __pydantic_config__ = STRICT
    commits: str
    corrections: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A stratum. band: of the slices, 0 without; size: its masks in the run; drawn: how many are in the sample."""

    __pydantic_config__ = STRICT
    category_id: int
    band: int
    size: int
    drawn: int

    @property
    def probability(self) -> float:
        """How likely each of its masks was to be drawn."""
        return self.drawn / self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sample of a run.

    labelers: shards by the fingerprint of what labelled them. view: by what options masks counted. shards: of the run,
    of which `done` were committed. masks, scenes: the samples of masks and of images,
    in their order.
    """

    __pydantic_config__ = STRICT
    format: Literal["patchlabel audit"] = "patchlabel audit"
    format_version: Literal[1] = 1
    run: str
    run_id: str
    run_created: str
    run_version: str
    version: str
    created: str
    state: State
    corrections: int
    labelers: Mapping[str, int]
    config: Mapping[str, Any]
    view: Mapping[str, Any]
    seed: int
    per_class: Annotated[int, Field(ge=1)]
    slices: Slices | None
    shards: int
    done: int
    images: int
    categories: tuple[Category, ...]
    strata: tuple[Group, ...]
    masks: tuple[Drawn, ...]
    scenes: tuple[Scene, ...] = ()

    @property
    def size(self) -> int:
        """The masks of the run, which the sample speaks for."""
        return sum(one.size for one in self.strata)


_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


def draw(labels: Labels, per_class: int, *, seed: int, bands: Slices | None = None, scenes: int = 0) -> Plan:
    """Draw a sample of a run, in one pass.

    Args:
        labels: the run, through the view by which masks count.
        per_class: masks of each class, or all where it has fewer.
        seed: the same sample for the same seed.
        bands: strata within a class; each has about the same part of the sample.
        scenes: images in which missed objects are to be counted.
    """
    sampler, digest = Sampler(per_class, seed, bands, scenes=scenes), hashlib.sha256()
    for commit in labels.commits():
        digest.update(digest_of(commit))
        for row in labels.rows(commit):
            sampler.add(commit.shard_id, row)
    drawn = sampler.drawn()
    numbers = Counter((one.category_id, one.band) for one in drawn)
    return Plan(
        run=redact(labels.uri),
        run_id=labels.manifest.run_id,
        run_created=labels.manifest.created,
        run_version=labels.manifest.version,
        version=__version__,
        created=dates.now(),
        state=State(commits=digest.hexdigest(), corrections=_digest(labels.corrections)),
        corrections=len(labels.corrections.counting),
        labelers=dict(labels.done),
        config=json.loads(json.dumps(labels.manifest.config)),
        view={
            "min_score": labels.view.min_score,
            "thresholds": labels.view.calibration is not None,
            "taxonomy": None if labels.view.taxonomy is None else dict(labels.view.taxonomy.names),
        },
        seed=seed,
        per_class=per_class,
        slices=bands,
        shards=len(labels.manifest.shards),
        done=labels.done.total(),
        images=sampler.images,
        categories=labels.categories,
        strata=tuple(
            Group(
                category_id=category,
                band=band,
                size=size,
                drawn=numbers[category, band],
            )
            for (category, band), size in sorted(sampler.sizes.items())
        ),
        masks=tuple(drawn),
        scenes=tuple(sampler.scenes()),
    )


def state(labels: Labels) -> State:
    """What a run is now; reads its commits."""
    digest = hashlib.sha256()
    for commit in labels.commits():
        digest.update(digest_of(commit))
    return State(commits=digest.hexdigest(), corrections=_digest(labels.corrections))


def check(plan: Plan, labels: Labels) -> None:
    """Make sure that a run is the one that the sample was drawn of.

    Raises:
        UserError: it is another one, or has changed since.
    """
    if plan.run_id != labels.manifest.run_id:
        raise UserError(f"the audit is of run {plan.run_id}, and {redact(labels.uri)} is run {labels.manifest.run_id}")
    now = state(labels)
    if now.commits != plan.state.commits:
        raise UserError(
            f"{redact(labels.uri)} has other commits than when the sample was drawn ({plan.created}), so the answers "
            "do not speak for it; draw a new one"
        )
    if now.corrections != plan.state.corrections:
        count = len(labels.corrections.counting)
        raise UserError(
            f"{redact(labels.uri)} was corrected since the sample was drawn ({plan.corrections} versions then, {count} "
            "now), so the answers do not speak for it; draw a new one"
        )


def document(plan: Plan) -> bytes:
    """The plan as a file."""
    return json.dumps(asdict(plan), indent=1, allow_nan=False).encode() + b"\n"


def read(store: Store, out: str) -> Plan:
    """Read the plan in a folder.

    Raises:
        UserError: there is none.
    """
    uri = join(out, FILE)
    try:
        return _PLAN.validate_json(store.get(uri, limit=_LIMIT))
    except NotFoundError as error:
        raise UserError(
            f"--out {redact(out)} has no {FILE}; name the folder that patchlabel audit --per-class wrote"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise UserError(
            f"{redact(uri)} is no plan of an audit: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def _digest(corrections: Corrections) -> str:
    digest = hashlib.sha256()
    for version in corrections.counting:
        for shard_id, output in sorted(version.outputs.items()):
            digest.update(f"{version.number} {shard_id} {output.sha256}\n".encode())
    return digest.hexdigest()
