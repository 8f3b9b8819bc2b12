"""A report as one HTML file, with its pictures in it and nothing to load."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from pipeline.reports.sections import Cell, Example, Plot, Section, Table

_STYLE = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --ground: #f6f7f9; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 27px; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
p { margin: 0 0 14px; color: var(--soft); max-width: 80ch; }
header p { overflow-wrap: anywhere; max-width: none; }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px; margin: 18px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; margin: 22px 0 0; }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.tile b { display: block; font-size: 34px; line-height: 1.15; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile:first-child b { color: var(--accent); }
.tile small, figcaption, .soft { color: var(--soft); font-size: 13px; }
.note { border-left: 4px solid #f59e0b; background: #fffbeb; padding: 10px 14px; margin: 16px 0 0; border-radius: 6px; }
.columns { display: flex; flex-wrap: wrap; gap: 20px 32px; align-items: flex-start; }
.tables { flex: 1 1 auto; max-width: 100%; overflow-x: auto; }
.plots { flex: 1 1 400px; min-width: 0; max-width: 540px; }
table { border-collapse: collapse; min-width: min(100%, 400px); margin-bottom: 16px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: 13px; white-space: nowrap; }
td { white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; padding-left: 0; }
td:first-child, .words td { white-space: normal; overflow-wrap: anywhere; min-width: 5.5em; }
.words { width: 100%; }
.words td:first-child { white-space: nowrap; color: var(--soft); padding-right: 24px; }
tbody tr:hover { background: #f9fafb; }
img { max-width: 100%; height: auto; display: block; }
.plots img { margin-bottom: 12px; }
.example { border-top: 1px solid var(--line); padding: 16px 0 4px; break-inside: avoid; }
.example > div:first-child { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; margin-top: 10px; }
.pair figure { margin: 0; }
.pair img { width: 100%; max-height: 640px; object-fit: contain; background: var(--ground); border-radius: 6px; }
@media (max-width: 640px) { .pair { grid-template-columns: 1fr; } }
@media print { body { background: #fff; } section, .tile { border-color: #ccc; } }
"""


def page(
    title: str,
    subtitle: str,
    tiles: Iterable[tuple[str, Cell, str]],
    notes: Iterable[str],
    sections: Iterable[Section],
) -> str:
    """The whole page; every text but the style is escaped.

    Args:
        title: of the page.
        subtitle: what it is about, in a line.
        tiles: the figures that are large: (name, value, what stands below).
        notes: what a reader must know before believing the figures.
        sections: the tables, plots and images.
    """
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>",
        '<div class="tiles">' + "".join(map(_tile, tiles)) + "</div>",
        *(f'<div class="note">{escape(note)}</div>' for note in notes),
        *map(_section, sections),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        f"'unsafe-inline'\"><title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body><main>\n{body}\n</main></body>\n</html>\n'


def _tile(tile: tuple[str, Cell, str]) -> str:
    name, value, below = tile
    return f'<div class="tile"><small>{escape(name)}</small><b>{_cell(value)}</b><small>{escape(below)}</small></div>'


def _section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    tables = '<div class="tables">' + "".join(map(_table, section.tables)) + "</div>" if section.tables else ""
    plots = '<div class="plots">' + "".join(map(_plot, section.plots)) + "</div>" if section.plots else ""
    columns = f'<div class="columns">{tables}{plots}</div>' if tables or plots else ""
    examples = "".join(map(_example, section.examples))
    return f"<section><h2>{escape(section.title)}</h2>{text}{columns}{examples}</section>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    kind = "" if table.figures else ' class="words"'
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(cell: Cell) -> str:
    return "-" if cell is None else escape(f"{cell:,}" if isinstance(cell, int) else str(cell))


def _plot(plot: Plot) -> str:
    return f'<img alt="{escape(plot.text)}" src="{_data("png", plot.png)}">'


def _example(example: Example) -> str:
    head = f'<div><h3>{escape(example.title)}</h3><span class="soft">{escape(example.caption)}</span></div>'
    if not example.pictures:
        return f'<div class="example">{head}<p>Not shown: {escape(example.problem or "")}</p></div>'
    pair = "".join(
        f'<figure><img alt="{name}" src="{_data("jpeg", jpeg)}"><figcaption>{name}</figcaption></figure>'
        for name, jpeg in ((escape(name), jpeg) for name, jpeg in example.pictures)
    )
    return f'<div class="example">{head}<div class="pair">{pair}</div></div>'


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
