"""The curve of a training, as a log line, a picture and a TensorBoard file.

A row is what is known of some steps together, figures by name: `step` (how many were taken by then), `time` (unix
seconds), `epoch`, `loss` and its parts `loss_*`, `lr`, `grad_norm`, `images_per_s`, `seconds` (a step), `data_seconds`
(of these, waiting for data), `memory_mb`, and figures of validation such as `val mask AP`, where they were measured.
Only `step` and `time` have to be there; what has another name is drawn and written, too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Row: TypeAlias = Mapping[str, float]
LineStyle: TypeAlias = Literal["-", "--", ":", "-."]
Floats: TypeAlias = npt.NDArray[np.float64]

_NOT_DRAWN = ("step", "time", "epoch", "seconds", "data_seconds", "memory_mb")
_NOISY = ("loss", "grad_norm", "images_per_s")
_COLUMNS = 4
_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")  # so that a curve is seen below another that is the same


def line(row: Row, *, steps: int) -> str:
    """A row as one line of a log.

    Args:
        row: what is known; what it lacks is left out.
        steps: how many steps the training has.

    >>> line({"step": 40, "loss": 1.25, "loss_mask": 0.5, "lr": 0.01, "images_per_s": 8, "seconds": 2}, steps=400)
    'step 40/400  loss 1.250  mask 0.500  lr 1.00e-02  8.0 images/s  2.00 s/step  12 min left'
    """
    parts = [f"step {row['step']:.0f}/{steps}"]
    if "epoch" in row:
        parts.append(f"epoch {row['epoch']:.2f}")
    parts += [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in row.items() if name.startswith("loss")]
    parts += [f"{name} {value:.3f}" for name, value in row.items() if name.startswith("val ")]
    if "lr" in row:
        parts.append(f"lr {row['lr']:.2e}")
    if "images_per_s" in row:
        parts.append(f"{row['images_per_s']:.1f} images/s")
    if "seconds" in row:
        waited = f" (data {row['data_seconds']:.2f})" if "data_seconds" in row else ""
        parts.append(f"{row['seconds']:.2f} s/step{waited}")
    if "memory_mb" in row:
        parts.append(f"{row['memory_mb']:.0f} MB")
    if "seconds" in row and steps > row["step"]:
        parts.append(f"{duration((steps - row['step']) * row['seconds'])} left")
    return "  ".join(parts)


def draw(histories: Mapping[str, Sequence[Row]], title: str) -> bytes:
    """Curves over the steps as a PNG, a small panel for each figure.

    Losses, the norm of the gradient and the throughput are drawn as they are, faintly, below their moving mean.

    Args:
        histories: rows in the order of their steps, by the name of the training. Several lie over each other, in each
            panel, to be compared.
        title: what stands above.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = _panels(histories)
    lines = max(1, math.ceil(len(names) / _COLUMNS))
    figure = Figure(figsize=(3.2 * _COLUMNS, 0.8 + 2.2 * lines), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # which leaves pyplot and its windows alone
    figure.suptitle(title if names else f"{title}: no figures yet", parse_math=False)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, _COLUMNS, place)
        axes.set_title(name, fontsize=9, parse_math=False)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        for number, rows in enumerate(histories.values()):
            steps, values = _curve(rows, name)
            colour, style = _look(number)
            if name.startswith(_NOISY):
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
                values = _smooth(values)
            axes.plot(steps, values, color=colour, linestyle=style, marker="." if len(steps) <= 40 else None)
    if len(histories) > 1:
        looks = [_look(number) for number in range(len(histories))]
        handles = [Line2D([], [], color=colour, linestyle=style) for colour, style in looks]
        figure.legend(handles, list(histories), loc="outside lower center", ncols=4, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def tensorboard(rows: Sequence[Row]) -> bytes:
    """A complete TensorBoard events file, to be stored under a name with "tfevents" in it.

    It depends on the rows alone, and a longer history has the file of a shorter one as its beginning; so a file that
    is written again and again, by a training that is resumed too, holds each step once. A TensorBoard that is open
    meanwhile follows a file that is replaced if it was started with --load_fast=false.

    Args:
        rows: in the order of their steps. Their `time` becomes the wall time; no rows give no bytes.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for number, row in enumerate(rows):
        if number == 0:
            writer.write(Event(wall_time=row["time"], file_version="brain.Event:2").SerializeToString())
        figures = [(name, value) for name, value in row.items() if name not in ("step", "time")]
        values = [Summary.Value(tag=_tag(name), simple_value=value) for name, value in figures]
        event = Event(wall_time=row["time"], step=int(row["step"]), summary=Summary(value=values))
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _tag(name: str) -> str:
    """The name under which TensorBoard shows a figure, with the group that it belongs to.

    >>> _tag("loss_mask"), _tag("val mask AP"), _tag("lr")
    ('loss/loss_mask', 'val/mask AP', 'train/lr')
    """
    if name.startswith("val "):
        return f"val/{name.removeprefix('val ')}"
    return f"loss/{name}" if name.startswith("loss") else f"train/{name}"


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(50), duration(3000), duration(9000), duration(200_000)
    ('50 s', '50 min', '2 h 30 min', '2 d 7 h')
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _panels(histories: Mapping[str, Sequence[Row]]) -> list[str]:
    """What is drawn: the loss and its parts, how the training goes, then figures of validation."""
    names = dict.fromkeys(name for rows in histories.values() for row in rows for name in row if name not in _NOT_DRAWN)
    return sorted(names, key=lambda name: (name.startswith("val "), not name.startswith("loss")))


def _look(number: int) -> tuple[str, LineStyle]:
    """The colour and the style of the first, second, ... training."""
    return f"C{number % 10}", _STYLES[number % len(_STYLES)]


def _curve(rows: Sequence[Row], name: str) -> tuple[Floats, Floats]:
    """The steps where a figure was measured, and its values."""
    points = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _smooth(values: Floats) -> Floats:
    """The mean of each value and its neighbours, a twentieth of the curve in all; of fewer where it begins and ends.

    >>> _smooth(np.array([1.0, 2.0, 6.0, 1.0])).tolist()
    [1.5, 3.0, 3.0, 3.5]
    """
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first), np.float64)
