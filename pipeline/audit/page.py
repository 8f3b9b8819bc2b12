"""The certificate as a page to read, to print and to sign."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from pipeline.audit.bounds import Mean, Share
from pipeline.audit.certificates import Certificate, Finding, Recall, limits
from pipeline.audit.verdicts import RIGHT, VERDICTS
from pipeline.reports import figures, webpage
from pipeline.reports.sections import Cell, Percent, Plot, Section, Table, percent
from pipeline.store import Store, join

TITLE = "Certificate of label quality"

_PRECISION = (
    "Precision is the share of masks that are right in all: the object, its class and its outline. At worst: were all "
    "masks of the sample without an answer wrong. A number with what is not decided is how many answers in all would "
    "decide it, if they go on like these. All masks together are weighted by the classes of the run, not of the sample."
)


def write(store: Store, out: str, certificate: Certificate) -> None:
    """Write certificate.json and certificate.html, each whole or not at all."""
    data = json.dumps(certificate.document(), indent=1, allow_nan=False) + "\n"
    store.put(join(out, "certificate.json"), data.encode())
    store.put(join(out, "certificate.html"), html(certificate).encode("utf-8", "backslashreplace"))


def html(certificate: Certificate) -> str:
    """The page."""
    plan = certificate.plan
    subtitle = f"{plan.run}, run {plan.run_id} of {plan.run_created}; audited {certificate.created}"
    return webpage.page(
        TITLE, subtitle, list(_tiles(certificate)), [_verdict(certificate)], list(_sections(certificate))
    )


def _tiles(certificate: Certificate) -> Iterator[tuple[str, Cell, str]]:
    overall, plan = certificate.overall, certificate.plan
    decision = "-" if overall.precision.value is None else overall.decision.capitalize()
    yield f"at least {certificate.target:.0%} right?", decision, "with 95 % confidence"
    yield "precision of all masks, %", percent(overall.precision.value), f"95 % sure: {_bounds(overall.precision)}"
    yield "object and class right, %", percent(overall.found.value), f"95 % sure: {_bounds(overall.found)}"
    yield "masks", plan.size, f"of {plan.images:,} images, {len(plan.categories)} classes"
    yield "judged by people", overall.precision.answered, f"of {overall.drawn:,} drawn at random"


def _verdict(certificate: Certificate) -> str:
    """The result in a sentence or two."""
    overall, target = certificate.overall, f"{certificate.target:.0%}"
    if overall.precision.value is None:
        return "Nothing was answered yet, so nothing can be said."
    words = {
        "accepted": f"Accepted: with 95 % confidence, at least {target} of the masks are right.",
        "rejected": f"Rejected: with 95 % confidence, fewer than {target} of the masks are right.",
        "not decided": f"Not decided: the sample does not tell whether {target} of the masks are right.",
    }
    sentence = words[overall.decision]
    if overall.decision == "not decided":
        sentence += f" {_needed(overall)}"
    by = {kind: [one.name for one in certificate.classes if one.decision == kind] for kind in words}
    return (
        f"{sentence} Of {len(certificate.classes)} classes taken on their own, {len(by['accepted'])} are accepted, "
        f"{len(by['rejected'])} rejected{_named(by['rejected'])}, {len(by['not decided'])} not decided."
    )


def _sections(certificate: Certificate) -> Iterator[Section]:
    yield _precision("By class", certificate.classes, certificate, plot=True)
    if certificate.plan.slices is not None and certificate.slices:
        yield _precision(f"By {certificate.plan.slices.column}", certificate.slices, certificate)
    yield _faults(certificate)
    yield _outlines(certificate)
    if certificate.recall is not None:
        yield _recall(certificate.recall)
    yield Section(
        title="What this does not say",
        tables=(Table(columns=("", ""), rows=tuple(limits(certificate)), figures=False),),
    )
    yield _sampling(certificate)
    yield _provenance(certificate)
    yield Section(
        title="Release",
        text="Who signs has read the result, the limits and the state of the run that they hold for.",
        tables=(Table(columns=("", ""), rows=(("name", " "), ("date", " "), ("signature", " ")), figures=False),),
    )


def _precision(title: str, findings: Sequence[Finding], certificate: Certificate, *, plot: bool = False) -> Section:
    rows = tuple(
        (
            one.name,
            one.size,
            one.precision.answered,
            percent(one.precision.value),
            _bounds(one.precision),
            percent(one.worst),
            one.decision if one.decision != "not decided" or one.needed is None else f"not decided: {one.needed:,}",
        )
        for one in (*findings, certificate.overall)
    )
    columns = ("", "masks", "judged", "precision, %", "95 % bounds", "at worst", f"at least {certificate.target:.0%}?")
    known = [one for one in findings if one.precision.value is not None]
    plots: tuple[Plot, ...] = ()
    if plot and known:
        png = figures.intervals(
            [one.name for one in known],
            [(one.precision.low or 0.0, one.precision.value or 0.0, one.precision.high or 0.0) for one in known],
            target=certificate.target,
            title="Precision by class",
        )
        plots = (Plot(png=png, text="Precision by class with its bounds, and the target"),)
    return Section(
        title=title,
        text=_PRECISION if plot else "As above, for masks of all classes.",
        tables=(Table(columns=columns, rows=rows),),
        plots=plots,
    )


def _faults(certificate: Certificate) -> Section:
    names = [name for name in VERDICTS if name != RIGHT]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (one.name, one.verdicts[RIGHT], *(one.verdicts[name] for name in names), one.drawn - one.precision.answered)
        for one in (*certificate.classes, certificate.overall)
    )
    return Section(
        title="What people found",
        text="Masks of the sample. " + " ".join(f"{name.capitalize()}: {words}." for name, words in VERDICTS.items()),
        tables=(Table(columns=("", RIGHT, *names, "no answer"), rows=rows),),
    )


def _outlines(certificate: Certificate) -> Section:
    found = [one for one in (*certificate.classes, certificate.overall) if one.redrawn.number]
    text = (
        "Where people drew a mask anew, its IoU with theirs. Accepted: the same over all masks of the right object and "
        "class, where those that people left as they were count 1, so it is as far as their eye goes."
    )
    if not found:
        return Section(title="Outlines", text=text + " Nobody has drawn a mask anew, so no IoU was measured.")
    rows = tuple(
        (
            one.name,
            one.redrawn.number,
            _mean(one.redrawn),
            _around(one.redrawn),
            _mean(one.accepted),
            _around(one.accepted),
        )
        for one in found
    )
    columns = ("", "redrawn", "mean IoU", "95 % bounds", "accepted: mean IoU", "95 % bounds")
    return Section(title="Outlines", text=text, tables=(Table(columns=columns, rows=rows),))


def _recall(found: Recall) -> Section:
    """Objects without a mask."""
    complete, share = found.complete, percent(found.complete.value)
    rows: tuple[tuple[Cell, ...], ...] = (
        ("images drawn", found.drawn, None),
        ("images looked through", found.answered, None),
        ("objects without a mask in these", found.missed, None),
        ("images without such an object, %", share, _bounds(complete)),
        ("missed objects for each mask", _mean(found.each), _around(found.each)),
        ("objects that have a mask (recall), %", percent(found.value), None),
    )
    return Section(
        title="Missed objects",
        text="In a simple random sample of all images. Recall is f / (f + m), where f is the share of masks with the "
        "right object and class, and m how many objects are missed for each mask; it has no bounds of its own.",
        tables=(Table(columns=("", "", "95 % bounds"), rows=rows),),
    )


def _sampling(certificate: Certificate) -> Section:
    plan = certificate.plan
    within = f" and, within it, each band of {plan.slices.column}" if plan.slices else ""
    names = {one.id: one.name for one in plan.categories}
    bands = plan.slices.names if plan.slices else ("",)
    rows = tuple(
        (
            ", ".join(filter(None, (names[one.category_id], bands[one.band]))),
            one.size,
            one.drawn,
            f"{one.probability:.6f}",
        )
        for one in plan.strata
    )
    return Section(
        title="How the sample was drawn",
        text=f"Each class{within} is a group. Of each class up to {plan.per_class:,} masks were drawn by lot, without "
        f"replacement, each of a group with the same probability; the seed is {plan.seed}. The bounds of a group are "
        "exact (Clopper and Pearson), and narrower where a good part of it was judged. Groups together are weighted by "
        "their sizes, with the exact bounds of the sample size that a simple random sample would need for the same "
        "variance (Korn and Graubard).",
        tables=(Table(columns=("group", "masks", "drawn", "probability"), rows=rows),),
    )


def _provenance(certificate: Certificate) -> Section:
    plan = certificate.plan
    rows: list[tuple[Cell, ...]] = [
        ("run", plan.run),
        ("run id", plan.run_id),
        ("labelers", ", ".join(f"{name} ({count:,} shards)" for name, count in plan.labelers.items())),
        ("shards", f"{plan.done:,} of {plan.shards:,} done"),
        ("corrections", f"{plan.corrections} versions"),
        ("sha256 of all commits", plan.state.commits),
        ("sha256 of all corrections", plan.state.corrections),
        ("sample drawn", plan.created),
        *(("answers", f"{source}, sha256 {sha256}") for source, sha256 in certificate.answers.items()),
        ("versions", f"run {plan.run_version}, sample {plan.version}, certificate {certificate.version}"),
        ("masks that count", json.dumps(dict(plan.view), ensure_ascii=False)),
    ]
    rows += [(key, json.dumps(value, ensure_ascii=False)) for key, value in plan.config.items()]
    return Section(title="Provenance", tables=(Table(columns=("", ""), rows=tuple(rows), figures=False),))


def _bounds(one: Share) -> str:
    return "-" if one.low is None or one.high is None else f"{Percent(one.low)} to {Percent(one.high)}"


def _mean(one: Mean) -> Cell:
    return None if one.value is None else f"{one.value:.3f}"


def _around(one: Mean) -> Cell:
    return None if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"


def _needed(one: Finding) -> str:
    if one.needed == one.size:
        return "It is so near to it that only all masks of the run would."
    return f"About {one.needed:,} answers in all would, if they go on like these."


def _named(names: Sequence[str], most: int = 5) -> str:
    return f" ({', '.join([*names[:most], *(['...'] if len(names) > most else [])])})" if names else ""
