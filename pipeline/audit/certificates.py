"""The plan of an audit and what people answered -> what can be said of the labels, and how surely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import __version__, dates
from pipeline.audit.bounds import CONFIDENCE, Decision, Mean, Share, Stratum, decide, mean, ratio, share
from pipeline.audit.plans import Group, Plan
from pipeline.audit.sampling import Drawn
from pipeline.audit.verdicts import RIGHT, VERDICTS, Answers

#: With these the object and its class are right, whatever the outline.
_FOUND = (RIGHT, "bad mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the sample says of a class, of a band of the slices, or of all masks.

    size: masks of the run; drawn: of these in the sample. verdicts: how many of each. precision: the share of masks
    that are right in all. found: that of masks whose object and class are right, whatever the outline. worst: the
    precision if all that was not answered were wrong. decision: whether the precision is at least the target. needed:
    how many answers in all would decide it at this precision; None where it is decided, or nothing was answered.
    redrawn: the IoU of masks with what people drew in their place. accepted: the same over all masks with the right
    object and class, those that people left as they are counting 1, and those that they called bad but did not redraw
    not at all.
    """

    name: str
    size: int
    drawn: int
    verdicts: Mapping[str, int]
    precision: Share
    found: Share
    worst: float | None
    decision: Decision
    needed: int | None
    redrawn: Mean
    accepted: Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """What the sample of images says of objects without a mask.

    drawn, answered: images. missed: objects that people found to have none. complete: the share of images where nothing
    was missed. each: missed objects for each mask. value: the share of objects that have a mask, which is f / (f +
    each), where f is the share of masks with the right object and class.
    """

    drawn: int
    answered: int
    missed: int
    complete: Share
    each: Mean
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """All that the page shows. answers: the files that they come from, with their checksums."""

    plan: Plan
    answers: Mapping[str, str]
    created: str
    version: str
    target: float
    overall: Finding
    classes: tuple[Finding, ...]
    slices: tuple[Finding, ...]
    recall: Recall | None = None

    def document(self) -> dict[str, Any]:
        """For JSON: the plan without its masks, which are in a file of their own."""
        plan = asdict(self.plan)
        plan |= {"masks": len(self.plan.masks), "scenes": len(self.plan.scenes)}
        return {
            "format": "patchlabel certificate",
            "format_version": 1,
            "confidence": CONFIDENCE,
            "target": self.target,
            "overall": asdict(self.overall),
            "classes": [asdict(one) for one in self.classes],
            "slices": [asdict(one) for one in self.slices],
            "recall": None if self.recall is None else asdict(self.recall),
            "limits": dict(limits(self)),
            "answers": [{"source": source, "sha256": sha256} for source, sha256 in self.answers.items()],
            "created": self.created,
            "version": self.version,
            "plan": plan,
        }


def certify(plan: Plan, answers: Answers, *, target: float) -> Certificate:
    """What the answers say of the run that the plan is of; `target` is the precision that it should have."""
    names = {one.id: one.name for one in plan.categories}
    bands = () if plan.slices is None else plan.slices.names

    def finding(name: str, *, category_id: int | None = None, band: int | None = None) -> Finding:
        def belongs(one: Group | Drawn) -> bool:
            return category_id in (None, one.category_id) and band in (None, one.band)

        groups = [one for one in plan.strata if belongs(one)]
        return _finding(name, groups, [one for one in plan.masks if belongs(one)], answers, target)

    overall = finding("all masks")
    ids = sorted({one.category_id for one in plan.strata})
    used = sorted({one.band for one in plan.strata})
    return Certificate(
        plan=plan,
        answers=answers.sources,
        created=dates.now(),
        version=__version__,
        target=target,
        overall=overall,
        recall=_recall(plan, answers, overall) if plan.scenes else None,
        classes=tuple(finding(names[id_], category_id=id_) for id_ in ids),
        slices=tuple(finding(bands[band], band=band) for band in used if bands),
    )


def limits(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """What a reader must not take the figures for, each with a word for it."""
    plan, overall = certificate.plan, certificate.overall
    if certificate.recall is None:
        yield (
            "missed objects",
            "It says how many of the masks are right, and nothing of objects that have no mask: they were not looked "
            "for.",
        )
    yield (
        "people",
        "What the people who judged said is taken for the truth. Where two people would judge differently, the figures "
        "are less sure than their bounds.",
    )
    thresholds = ", thresholds of a calibration" if plan.view["thresholds"] else ""
    yield (
        "this state",
        f"It speaks of masks of score {plan.view['min_score']:g} and more{thresholds}, in the state of the run with "
        "the checksums below. Corrections that came later make another state.",
    )
    yield (
        "confidence",
        "Each bound holds for itself with 95 % confidence: of twenty classes, expect one outside its bounds. Who looks "
        "again after further answers, and stops when the result pleases, is less sure than it says.",
    )
    if plan.done < plan.shards:
        missing = plan.shards - plan.done
        yield "not labelled", f"{missing:,} of {plan.shards:,} shards were not labelled when the sample was drawn."
    if unanswered := overall.drawn - overall.precision.answered:
        yield (
            "no answer",
            f"{unanswered:,} of {overall.drawn:,} masks of the sample have no answer. They are taken to be like the "
            "others; the column at worst takes them all for wrong.",
        )
    if overall.precision.answered and overall.precision.covered < 1:
        yield (
            "not covered",
            f"Groups with {1 - overall.precision.covered:.1%} of the masks have no answer at all, and are not in the "
            "figures for all masks.",
        )


def _recall(plan: Plan, answers: Answers, overall: Finding) -> Recall:
    counted = [(answers.missed[one.name], one.masks) for one in plan.scenes if one.name in answers.missed]
    whole = Stratum(size=plan.images, answered=len(counted), right=sum(missed == 0 for missed, _ in counted))
    each, found = ratio(counted), overall.found.value
    known = found is not None and each.value is not None and found + each.value > 0
    return Recall(
        drawn=len(plan.scenes),
        answered=len(counted),
        missed=sum(missed for missed, _ in counted),
        complete=share([whole]),
        each=each,
        value=found / (found + each.value) if known and found is not None and each.value is not None else None,
    )


def _finding(name: str, groups: Sequence[Group], sample: Sequence[Drawn], answers: Answers, target: float) -> Finding:
    """The figures of some strata, and the masks of the sample that are in them."""
    strata = {(one.category_id, one.band): one for one in groups}
    verdicts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
    right: Counter[tuple[int, int]] = Counter()
    found: Counter[tuple[int, int]] = Counter()
    answered: Counter[tuple[int, int]] = Counter()
    judged = [(one, answers.verdicts[one.name]) for one in sample if one.name in answers.verdicts]
    for one, said in judged:
        stratum = one.category_id, one.band
        verdicts[said.verdict] += 1
        answered[stratum] += 1
        right[stratum] += said.verdict == RIGHT
        found[stratum] += said.verdict in _FOUND

    def shares(of: Mapping[tuple[int, int], int], out_of: Mapping[tuple[int, int], int]) -> Share:
        return share([Stratum(size=one.size, answered=out_of[at], right=of[at]) for at, one in strata.items()])

    precision = shares(right, answered)
    decision, needed = decide(precision, sum(one.size for one in groups), target)
    weight = {at: one.size / answered[at] for at, one in strata.items() if answered[at]}
    redrawn, accepted = [], []
    for one, said in judged:
        value = weight[one.category_id, one.band]
        if said.iou is not None:
            redrawn.append((said.iou, value))
        if said.verdict in _FOUND and (said.iou is not None or said.verdict == RIGHT):
            accepted.append((1.0 if said.iou is None else said.iou, value))
    return Finding(
        name=name,
        size=sum(one.size for one in groups),
        drawn=len(sample),
        verdicts=dict(verdicts),
        precision=precision,
        found=shares(found, answered),
        worst=shares(right, {at: one.drawn for at, one in strata.items()}).value,
        decision=decision,
        needed=needed,
        redrawn=mean(redrawn),
        accepted=mean(accepted),
    )
