"""Plots of a report, as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"mask": "#2563eb", "boundary": "#ea7317", "box": "#7c8798"}
INK, FAINT = "#1f2937", "#e5e7eb"

#: Classes in a plot; of more, the best and the worst halves are shown.
MOST_BARS = 40

_DPI = 160
#: Names come from the user: they are text, never mathematics between dollars.
_STYLE: Any = {
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "legend.frameon": False,
}


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float | None]],
    *,
    title: str,
    x_label: str,
    y_label: str,
) -> bytes:
    """Lines by name, of shares in 0..1 over shared x values, both shown in percent."""
    with _page(5.2, 3.6) as (figure, axes):
        for colour, (name, values) in zip(cycle(COLOURS.values()), lines.items()):
            shown = [float("nan") if value is None else 100 * value for value in values]
            axes.plot([100 * value for value in x], shown, label=_short(name), color=colour, linewidth=1.8)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 102), xlim=(0, 100))
        axes.grid(True)
        axes.legend(loc="lower left", fontsize=8)
        return _png(figure)


def bars(names: Sequence[str], values: Mapping[str, Sequence[float | None]], *, title: str, x_label: str) -> bytes:
    """For each name, the first on top, a group of horizontal bars: shares in 0..1, shown in percent."""
    shown = list(range(len(names)))
    if len(names) > MOST_BARS:
        half = MOST_BARS // 2
        shown = [*range(half), *range(len(names) - half, len(names))]
        title = f"{title}: the {half} best and the {half} worst of {len(names)}"
    thick = 0.8 / len(values)
    with _page(5.2, 0.9 + len(shown) * (0.1 + 0.11 * len(values))) as (figure, axes):
        for number, (name, column) in enumerate(values.items()):
            heights = [place + (number - (len(values) - 1) / 2) * thick for place in range(len(shown))]
            widths = [100 * (column[index] or 0.0) for index in shown]
            axes.barh(heights, widths, height=thick * 0.92, label=name, color=COLOURS.get(name, "#7c8798"))
        axes.set_yticks(range(len(shown)), [_short(names[index]) for index in shown])
        axes.set(title=title, xlabel=x_label, xlim=(0, 100), ylim=(len(shown) - 0.4, -0.6))
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper right", ncols=len(values), fontsize=8)
        return _png(figure)


def reliability(lines: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[int]]], *, title: str) -> bytes:
    """What was right over what was predicted, both in percent, above how many there were of each.

    Args:
        lines: by name, for each bin of equal width the mean prediction and the share that was right, both in 0..1 and
            NaN in an empty bin, and how many are in it; the more, the larger its dot.
        title: what stands above.
    """
    with _page(5.2, 5.2) as (figure, axes):
        axes.remove()
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 100], [0, 100], color="#9ca3af", linestyle="--", linewidth=1.2, label="ideal")
        for colour, (name, (predicted, right, counts)) in zip(COLOURS.values(), lines.items(), strict=False):
            bins = [(100 * x, 100 * y, n) for x, y, n in zip(predicted, right, counts, strict=True) if n]
            x, y, numbers = zip(*bins, strict=True) if bins else ((), (), ())
            upper.plot(x, y, color=colour, linewidth=1.4, marker="o", markersize=4, label=_short(name, 40))
            upper.scatter(x, y, [6 + 100 * number / sum(numbers) for number in numbers], color=colour)
            lower.stairs(counts, [100 * number / len(counts) for number in range(len(counts) + 1)], color=colour)
        upper.set(title=title, ylabel="right, %", ylim=(-3, 103), xlim=(-1, 101))
        lower.set(xlabel="predicted, %", ylabel="masks", yscale="log")
        lower.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        for each in (upper, lower):
            each.grid(True)
        upper.legend(loc="upper left", fontsize=8)
        return _png(figure)


def over_time(
    minutes: Sequence[float], values: Sequence[float], *, title: str, y_label: str, steps: bool = False
) -> bytes:
    """A figure over the minutes of a run, in hours where it took long; `steps` where it stays until it changes."""
    scale, unit = (60.0, "hours") if minutes and minutes[-1] > 300 else (1.0, "minutes")
    with _page(5.2, 2.6) as (figure, axes):
        x = [minute / scale for minute in minutes]
        axes.plot(x, values, color=COLOURS["mask"], linewidth=1.6, drawstyle="steps-post" if steps else "default")
        axes.fill_between(x, values, color=COLOURS["mask"], alpha=0.12, step="post" if steps else None)
        axes.set(title=title, xlabel=unit, ylabel=y_label, ylim=(0, None), xlim=(0, None))
        axes.grid(True)
        return _png(figure)


def shares(names: Sequence[str], values: Sequence[float], *, title: str) -> bytes:
    """Parts of a whole as horizontal bars, each with its share in percent."""
    total = sum(values) or 1.0
    with _page(5.2, 0.8 + 0.28 * len(names)) as (figure, axes):
        places = axes.barh(range(len(names)), [100 * value / total for value in values], color=COLOURS["mask"])
        axes.bar_label(places, [f"{100 * value / total:.1f}" for value in values], padding=4, fontsize=8)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set(title=title, xlabel="percent", ylim=(len(names) - 0.4, -0.6))
        axes.margins(x=0.12)
        axes.tick_params(axis="y", length=0)
        return _png(figure)


def histograms(columns: Mapping[str, tuple[float, float, Sequence[int]]], *, title: str) -> bytes:
    """Small histograms side by side: by name, the range of the bins and how many values are in each."""
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    with _page(1.75 * across, 0.4 + 1.45 * down) as (figure, axes):
        axes.remove()
        figure.suptitle(title, fontsize=10, fontweight="bold", x=0.02, ha="left", color=INK)
        for place, (name, (low, high, counts)) in enumerate(columns.items(), start=1):
            small = figure.add_subplot(down, across, place)
            edges = [low + (high - low) * number / len(counts) for number in range(len(counts) + 1)]
            small.stairs(counts, edges, fill=True, color=COLOURS["mask"])
            small.set_title(_short(name, 22), fontsize=8, fontweight="normal")
            small.set(xlim=(low, high), yticks=[])
            small.tick_params(labelsize=7)
        return _png(figure)


def intervals(
    names: Sequence[str], values: Sequence[tuple[float, float, float]], *, target: float, title: str
) -> bytes:
    """For each name, the first on top, a share with its bounds (low, value, high) in 0..1, shown in percent.

    What is below the target, at all or by its bounds, is told by its colour. Of many, the lowest are shown.
    """
    shown = list(range(len(names)))
    if len(names) > MOST_BARS:
        shown = sorted(sorted(shown, key=lambda index: values[index][1])[:MOST_BARS])
        title = f"{title}: the {MOST_BARS} lowest of {len(names)}"
    with _page(5.2, 1.0 + 0.24 * len(shown)) as (figure, axes):
        axes.axvline(100 * target, color="#9ca3af", linestyle="--", linewidth=1.2, label=f"target {100 * target:g} %")
        for place, index in enumerate(shown):
            low, value, high = (100 * share for share in values[index])
            colour = COLOURS["boundary"] if high < 100 * target else COLOURS["mask"]
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot(value, place, marker="o", markersize=5.5, color=colour)
        least = min([100 * target, *(100 * values[index][0] for index in shown)])
        axes.set_yticks(range(len(shown)), [_short(names[index]) for index in shown])
        axes.set(title=title, xlabel="percent", xlim=(max(-1, least - 5), 101), ylim=(len(shown) - 0.4, -0.6))
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper right", fontsize=8)
        return _png(figure)


@contextmanager
def _page(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of a size in inches, without the global state of pyplot."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names in scripts that the font lacks
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _short(name: str, length: int = 24) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return text if len(text) <= length else text[: length - 1] + "…"
