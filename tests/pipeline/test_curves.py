"""Log lines, pictures and TensorBoard files of training curves."""

import io
import math
import random

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import curves

BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # what matplotlib gives the first and the second curve


def make_rows(count, *, every=20, seed=0):
    noise = random.Random(seed)
    rows = []
    for number in range(1, count + 1):
        row = {
            "step": float(number * every),
            "time": 1.7e9 + 7.25 * number,
            "epoch": number / 10,
            "loss": 4 / number + noise.random(),
            "loss_mask_dct": 2 / number + noise.random(),
            "lr": 0.01,
            "grad_norm": 5 * noise.random(),
            "seconds": 0.5,
            "data_seconds": 0.01,
            "images_per_s": 8 + noise.random(),
            "memory_mb": 900.0,
        }
        if number % 5 == 0:
            row |= {"val mask AP": number / 100, "val boundary AP": number / 200}
        rows.append(row)
    return rows


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has(image, colour):
    return (image == colour).all(axis=2).any()


def test_line():
    """A log says how far the training is, what it costs and when it ends."""
    row = make_rows(5)[-1] | {"loss": 1.25, "loss_mask_dct": 0.5, "images_per_s": 8.04, "grad_norm": 3.0}
    assert curves.line(row, steps=7300) == (
        "step 100/7300  epoch 0.50  loss 1.250  mask_dct 0.500  val mask AP 0.050  val boundary AP 0.025  lr 1.00e-02  "
        "8.0 images/s  0.50 s/step (data 0.01)  900 MB  60 min left"
    )


def test_line_of_little():
    """A row that lacks a figure, or has one that is no number, does not end a training."""
    assert curves.line({"step": 5.0}, steps=10) == "step 5/10"
    assert (
        curves.line({"step": 10.0, "loss": math.nan, "seconds": 1.0}, steps=10) == "step 10/10  loss nan  1.00 s/step"
    )


def test_picture_has_a_panel_for_each_figure():
    """A figure that was measured is not left out of the picture, whatever its name."""
    rows = make_rows(10)
    seven = pixels(curves.draw({"": rows}, "a"))
    more = [row | {f"val another {number}": 0.5 for number in range(4)} for row in rows]
    eleven = pixels(curves.draw({"": more}, "a"))
    assert eleven.shape[0] > seven.shape[0]
    assert eleven.shape[1] == seven.shape[1]
    empty = pixels(curves.draw({"": [{"step": row["step"], "time": row["time"], "seconds": 1.0} for row in rows]}, "a"))
    assert not has(empty, BLUE)
    assert has(seven, BLUE)


def test_picture_of_two_trainings():
    """A resumed training that went another way than the undisturbed one can be told from it."""
    rows = make_rows(30)
    one = pixels(curves.draw({"undisturbed": rows}, "a"))
    same = pixels(curves.draw({"undisturbed": rows, "resumed": make_rows(30)}, "a"))
    other = pixels(curves.draw({"undisturbed": rows, "resumed": rows[:10] + make_rows(30, seed=1)[10:]}, "a"))
    assert has(one, BLUE)
    assert not has(one, ORANGE)
    assert has(same[:-60], BLUE)  # through the gaps of the second; the legend is below
    assert has(same, ORANGE)
    assert not np.array_equal(same, other)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        make_rows(1),
        [{"step": 20.0, "time": 1.0, "loss": math.nan, "val mask AP": math.nan}],
        [{"step": 20.0, "time": 1.0, "loss": math.inf}, {"step": 40.0, "time": 2.0, "loss": 1.0}],
    ],
    ids=["none", "one", "nan", "inf"],
)
def test_picture_of_little(rows):
    """A training that has just begun, or that diverges, gets its picture, and no warning."""
    assert pixels(curves.draw({"": rows}, "30% of $x_$")).ndim == 3


def test_one_wild_figure_in_a_picture():
    """A loss that was not finite for once does not take the rest of the curve out of the picture."""
    rows = make_rows(30)
    wild = [*rows[:10], rows[9] | {"step": 205.0, "loss": math.inf, "loss_mask_dct": math.nan}, *rows[10:]]
    tame = [{name: value for name, value in row.items() if math.isfinite(value)} for row in wild]
    assert curves.draw({"": wild}, "a") == curves.draw({"": tame}, "a")


def test_picture_is_of_its_own():
    """The same rows give the same file, and what else a process draws with matplotlib is left alone."""
    rows, settings = [{"step": 20.0, "time": 1.0, "loss": 1.0}], dict(matplotlib.rcParams)
    assert curves.draw({"": rows}, "a") == curves.draw({"": rows}, "a")
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def read(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_reads_it(tmp_path):
    """What TensorBoard shows are the rows: each step once, with its value and the time when it was taken."""
    rows = make_rows(12)
    (tmp_path / "events.out.tfevents.0").write_bytes(curves.tensorboard(rows))
    accumulator = read(tmp_path)
    tags = {
        "loss/loss": "loss",
        "loss/loss_mask_dct": "loss_mask_dct",
        "val/mask AP": "val mask AP",
        "val/boundary AP": "val boundary AP",
        **{f"train/{name}": name for name in ("epoch", "lr", "grad_norm", "seconds", "data_seconds", "images_per_s")},
        "train/memory_mb": "memory_mb",
    }
    assert set(accumulator.Tags()["scalars"]) == set(tags)
    for tag, name in tags.items():
        having = [row for row in rows if name in row]
        points = accumulator.Scalars(tag)
        assert [point.step for point in points] == [row["step"] for row in having]
        assert [point.wall_time for point in points] == [row["time"] for row in having]
        assert [point.value for point in points] == pytest.approx([row[name] for row in having], rel=1e-6)
    assert accumulator.FirstEventTimestamp() == rows[0]["time"]


def test_tensorboard_while_the_training_goes_on(tmp_path):
    """A TensorBoard that stays open goes on to the new rows, and shows none twice, when the file is replaced."""
    rows, path = make_rows(12), tmp_path / "events.out.tfevents.0"
    path.write_bytes(curves.tensorboard(rows[:5]))
    accumulator = read(tmp_path)
    assert len(accumulator.Scalars("loss/loss")) == 5
    (tmp_path / "new").write_bytes(curves.tensorboard(rows))
    (tmp_path / "new").replace(path)
    accumulator.Reload()
    assert [point.step for point in accumulator.Scalars("loss/loss")] == [row["step"] for row in rows]


def test_tensorboard_file_grows():
    """The file of a longer history begins with that of a shorter one, in another process, too: it has no clock."""
    rows = make_rows(12)
    whole = curves.tensorboard(rows)
    parts = [curves.tensorboard(rows[:count]) for count in range(13)]
    assert parts[0] == b""
    assert parts[-1] == whole
    assert all(whole.startswith(part) for part in parts)
    assert len(set(parts)) == 13


def test_tensorboard_takes_what_is_no_number(tmp_path):
    """A loss that was not finite is shown as such rather than ending the training."""
    rows = [{"step": 20.0, "time": 1.0, "loss": math.nan}, {"step": 40.0, "time": 2.0, "loss": 1e60}]
    (tmp_path / "events.out.tfevents.0").write_bytes(curves.tensorboard(rows))
    values = [point.value for point in read(tmp_path).Scalars("loss/loss")]
    assert math.isnan(values[0])
    assert values[1] == math.inf
