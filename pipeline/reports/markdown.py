"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.reports.sections import Cell, Section, Table

#: What Markdown, or the HTML within it, would take for its own.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$])")


def page(title: str, subtitle: str, notes: Iterable[str], sections: Iterable[Section]) -> str:
    """The sections with their tables, after what a reader must know; plots are left out."""
    parts = [f"# {title}", escape(subtitle), *(f"> {escape(note)}" for note in notes)]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [section.text] if section.text else []
        parts += map(table, section.tables)
    return "\n\n".join(parts) + "\n"


def table(table: Table) -> str:
    r"""A table whose figures stand to the right.

    >>> print(table(Table(columns=("", "number"), rows=(("a|b", 3), ("c", None)))))
    |  | number |
    |---|---:|
    | a\|b | 3 |
    | c | - |
    """
    right = "---:|" if table.figures else "---|"
    rows = [f"| {' | '.join(map(_cell, row))} |" for row in (table.columns, *table.rows)]
    return "\n".join([rows[0], "|---|" + right * (len(table.columns) - 1), *rows[1:]])


def escape(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _cell(cell: Cell) -> str:
    return "-" if cell is None else escape(str(cell)) if isinstance(cell, str) else str(cell)
