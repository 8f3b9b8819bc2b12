"""The report of an evaluation: report.json for machines, report.md and report.html for people.

sections    the figures as tables and plots (figures), which both pages show
pictures    images with their truth and their predictions
markdown, webpage    the two pages
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.reports import markdown, sections, webpage
from pipeline.reports.pictures import example
from pipeline.reports.sections import Example, Report, Section, Table
from pipeline.store import Store, join

__all__ = ["Example", "example", "write"]

TITLE = "Mask evaluation"


def write(store: Store, output: str, report: Report, examples: Sequence[Example], examples_text: str) -> None:
    """Write report.json, report.md and report.html, each whole or not at all.

    Args:
        store: where to write to.
        output: the folder or prefix.
        report: what `jobs.evaluate` measured, with `provenance`, and maybe `notes`.
        examples: the images that the web page shows.
        examples_text: what these are, or why there are none.

    Raises:
        StoreError: a file cannot be written.
    """
    provenance = _provenance(report)
    found = [*sections.build(report), provenance]
    worst = Section(title="Worst images", text=examples_text, examples=tuple(examples))
    notes = report.get("notes", [])
    web = webpage.page(TITLE, _subtitle(report), sections.headline(report), notes, [*found[:-1], worst, provenance])
    text = markdown.page(TITLE, _subtitle(report), notes, found)
    data = json.dumps(report, indent=2, allow_nan=False) + "\n"
    for name, content in (("report.json", data), ("report.md", text), ("report.html", web)):
        store.put(join(output, name), content.encode("utf-8", "backslashreplace"))


def _subtitle(report: Report) -> str:
    provenance = report["provenance"]
    truth = provenance["truth"]["uri"]
    return (
        f"{provenance['predictions']['uri']} against {truth}"
        if provenance["predictions"]
        else f"What encodings keep of {truth}"
    )


def _provenance(report: Report) -> Section:
    """Where the figures come from."""
    provenance = report["provenance"]
    rows: list[tuple[str, str]] = []
    for what in ("predictions", "truth"):
        rows += [(what if key == "uri" else f"{what}, {key}", str(value)) for key, value in _items(provenance[what])]
    rows += [("version", f"patchlabel {provenance['version']}"), ("date", provenance["date"])]
    rows += [(key, json.dumps(value, ensure_ascii=False)) for key, value in _items(provenance["settings"])]
    return Section(title="Provenance", tables=(Table(columns=("", ""), rows=tuple(rows), figures=False),))


def _items(values: Report | None) -> list[tuple[str, object]]:
    return [(key, value) for key, value in (values or {}).items() if value is not None]
