"""Calibrations: how they are fitted, what they say, what they refuse."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_api
from scipy import stats

from pipeline import calibration, runs
from pipeline.calibration import additive, figures, fitting, matching
from pipeline.calibration.record import Calibration, QualityModel, Source, Target
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.records import NO_INSTANCES, Category, Instances
from pipeline.store import Store
from tests.small_runs import make_run

TARGET = Target(precision=0.9, iou=0.5, confidence=0.9)
SOURCE = Source(
    run="runs/a", run_id="1", fingerprint="f", truth="truth.json", images=1, masks=1, objects=1, date="d", version="v"
)
CLASSES = (Category(id=1, name="bright"), Category(id=7, name="dark"))


def rle(*masks: np.ndarray) -> tuple[str, ...]:
    return tuple(mask_api.encode(np.asfortranarray(mask, np.uint8))["counts"].decode() for mask in masks)


def square(x: int, y: int, side: int = 4, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def instances(masks: Sequence[np.ndarray], scores: Sequence[float], classes: Sequence[int], **quality) -> Instances:
    return Instances(
        category_ids=np.array(classes, np.int32),
        scores=np.array(scores, np.float32),
        boxes=np.zeros((len(masks), 4), np.float32),
        areas=np.array([mask.sum() for mask in masks], np.int64),
        counts=rle(*masks),
        quality={name: np.array(values, np.float32) for name, values in quality.items()},
    )


def objects(masks: Sequence[np.ndarray], classes: Sequence[int], crowds: Sequence[int] = ()) -> list[dict]:
    segmentations = [
        {"size": list(mask.shape), "counts": counts} for mask, counts in zip(masks, rle(*masks), strict=True)
    ]
    return [
        {"category_id": kind, "segmentation": segmentation, "iscrowd": int(place in crowds)}
        for place, (kind, segmentation) in enumerate(zip(classes, segmentations, strict=True))
    ]


def drawn(
    number: int, seed: int = 0, *, classes: Sequence[int] = (1, 7), hopeless: int | None = None
) -> fitting.Sample:
    """Masks whose hint `sharp` tells their IoU where they match, and whose score says too much of a match."""
    rng = np.random.default_rng(seed)
    score, sharp = rng.uniform(0, 1, number), rng.uniform(0, 1, number)
    kinds = rng.choice(classes, number)
    chance = np.where(kinds == hopeless, 0.4 * score, np.clip(3 * score - 1.2, 0.01, 0.99))
    right = rng.uniform(0, 1, number) < chance
    iou = np.where(right, 0.5 + 0.5 * sharp**2, rng.uniform(0, 0.4, number))
    columns = {"score": score, "log_area": rng.normal(5, 1, number), "sharp": sharp, "noise": rng.normal(0, 1, number)}
    return fitting.Sample(
        folds=rng.integers(0, fitting.FOLDS, number),
        classes=kinds,
        columns=columns,
        iou=iou,
        right=right,
        objects=dict.fromkeys(classes, number),
    )


@pytest.fixture(scope="module")
def fitted() -> tuple[Calibration, fitting.Figures]:
    return fitting.fit(drawn(4000), CLASSES, target=TARGET, source=SOURCE)


# Additive models


def test_a_mean_is_found_again():
    """A regression that misses a bent relation, or takes one feature's part for the other's."""
    rng = np.random.default_rng(0)
    columns = {"a": rng.uniform(0, 1, 3000), "b": rng.normal(0, 1, 3000)}
    target = np.abs(columns["a"] - 0.5) + 0.1 * columns["b"]
    model = additive.fit_mean(columns, target)
    assert np.abs(model(columns) - target).mean() < 0.03
    assert model.features == ("a", "b")


def test_a_share_is_found_again():
    """Probabilities that are off, or that ignore the class."""
    rng = np.random.default_rng(0)
    columns, classes = {"a": rng.uniform(-3, 3, 8000)}, rng.choice([1, 7], 8000)
    chance = additive.logistic(columns["a"] + np.where(classes == 7, -1.0, 0.5))
    model = additive.fit_share(columns, rng.uniform(0, 1, 8000) < chance, classes)
    assert np.abs(model(columns, classes) - chance).mean() < 0.02
    stranger = model({"a": np.zeros(1)}, np.array([99]))
    assert model.offsets[7] < model.offsets[1]
    assert 0.2 < stranger[0] < 0.8


def test_what_is_not_known_adds_nothing():
    """One missing value that makes a whole prediction NaN, or is taken for a 0."""
    rng = np.random.default_rng(0)
    columns = {"a": rng.uniform(5, 9, 500)}
    model = additive.fit_mean(columns, 2 * columns["a"])
    assert model({"a": np.array([np.nan])})[0] == pytest.approx(2 * columns["a"].mean())
    half = {"a": np.where(np.arange(500) % 2 == 0, np.nan, columns["a"]), "b": np.full(500, np.nan), "c": np.ones(500)}
    again = additive.fit_mean(half, 2 * columns["a"])
    assert again.features == ("a",)
    assert again({"a": np.array([6.0])})[0] == pytest.approx(12, abs=0.3)


@pytest.mark.parametrize("value", [True, False])
def test_masks_that_are_all_alike(value):
    """Where all are right the likelihood has no maximum, and the fit must end nevertheless."""
    columns = {"a": np.linspace(0, 1, 50)}
    model = additive.fit_share(columns, np.full(50, value), np.ones(50, np.int64))
    shares = model(columns, np.ones(50, np.int64))
    assert np.isfinite(shares).all()
    assert (np.abs(shares - value) < 0.1).all()


# Figures


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1)), min_size=3, max_size=40))
def test_spearman_is_that_of_scipy(pairs):
    """Ties ranked by their order."""
    first, second = np.array(pairs, np.float64).T
    found = figures.spearman(first, second)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first, second)[0], abs=1e-9)


@given(st.integers(1, 300), st.data())
def test_bound_is_below_the_share(kept, data):
    """A bound that lets a class of two masks pass for a sure one."""
    right = data.draw(st.integers(0, kept))
    [bound] = figures.lower_bound(np.array([right]), np.array([kept]), 0.9)
    exact = stats.binomtest(right, kept).proportion_ci(0.8, method="wilson").low  # two-sided 0.8 is one-sided 0.9
    assert bound == pytest.approx(exact, abs=1e-9)


def test_least_probability():
    """A threshold that lets in what is wrong, leaves out what is right, or parts masks of equal probability."""
    probability = np.repeat([0.9, 0.6, 0.6, 0.2], 50)
    right = np.repeat([True, True, False, False], 50)
    choose = {"precision": 0.9, "confidence": 0.9}
    assert figures.least_probability(probability, right, **choose) == pytest.approx(0.75)
    assert figures.least_probability(probability, np.ones(200, bool), **choose) == pytest.approx(0.1)
    assert figures.least_probability(probability, ~right, **choose) is None
    assert figures.least_probability(probability[:5], right[:5], **choose) is None  # five right ones prove little


def test_worst_share():
    """Bad masks counted that are not among the worst."""
    predicted, bad = np.linspace(0, 1, 40), np.zeros(40, bool)
    bad[[0, 3, 4, 39]] = True
    assert figures.worst_share(predicted, bad) == 0.5
    assert figures.possible_share(bad) == 1
    assert figures.possible_share(~bad) == pytest.approx(4 / 36)
    assert figures.worst_share(predicted, np.zeros(40, bool)) is None


# Matching


def test_a_second_mask_on_an_object_is_not_right():
    """Duplicates that count as right would make scores look better than they are; but their outline is good."""
    found = instances([square(1, 1), square(1, 1), square(2, 1)], [0.5, 0.9, 0.4], [1, 1, 1])
    judged = matching.judge(found, objects([square(1, 1)], [1]), (20, 20), least=0.5)
    assert judged.right.tolist() == [False, True, False]
    assert judged.iou.tolist() == [1, 1, pytest.approx(12 / 20)]
    assert not judged.excused.any()


def test_the_class_counts():
    """A mask of another class is as wrong as one of nothing."""
    found = instances([square(1, 1), square(12, 12)], [0.9, 0.8], [7, 1])
    judged = matching.judge(found, objects([square(1, 1), square(12, 12)], [1, 1]), (20, 20), least=0.5)
    assert judged.right.tolist() == [False, True]
    assert judged.iou.tolist() == [0, 1]


def test_crowds_excuse():
    """What lies in a crowd is neither right nor wrong, as in COCO's evaluation."""
    found = instances([square(1, 1), square(12, 12), square(2, 2)], [0.9, 0.8, 0.7], [1, 1, 7])
    judged = matching.judge(found, objects([square(0, 0, 9)], [1], crowds=[0]), (20, 20), least=0.5)
    assert judged.excused.tolist() == [True, False, False]
    assert judged.iou.tolist() == [0, 0, 0]


def test_polygons_and_nothing():
    """A truth in polygons; and images without masks or without objects."""
    polygon = {"category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    judged = matching.judge(instances([square(1, 1)], [0.9], [1]), [polygon], (20, 20), least=0.5)
    assert judged.iou.tolist() == [1]
    assert len(matching.judge(NO_INSTANCES, [polygon], (20, 20), least=0.5).iou) == 0
    assert matching.judge(instances([square(1, 1)], [0.9], [1]), [], (20, 20), least=0.5).right.tolist() == [False]


# Fitting


def test_what_is_fitted_holds_on_other_images(fitted):
    """Figures that are better than what one gets; probabilities that are no better than scores."""
    made, said = fitted
    found, classes = fitting.measure(drawn(4000, seed=1), made)
    assert said.after.error < 0.03
    assert found.after.error < 0.03 < 0.1 < found.before.error
    assert found.groups[1].predicted.spearman > 0.7 > 0.3 > found.groups[1].score.spearman
    assert said.groups[1].predicted.spearman == pytest.approx(found.groups[1].predicted.spearman, abs=0.03)
    for one in classes:
        assert 0.88 < one.precision < 0.97
        assert one.kept > 100


def test_figures_are_of_images_that_were_not_seen():
    """Models that know the images by heart would pass every check on these."""
    rng = np.random.default_rng(0)
    sample = drawn(300)
    columns = {**{f"x{number}": rng.normal(0, 1, 300) for number in range(30)}, "score": np.full(300, 0.5)}
    nothing = dataclasses.replace(
        sample, columns=columns, right=rng.uniform(0, 1, 300) < 0.5, iou=rng.uniform(0, 1, 300)
    )
    _, said = fitting.fit(nothing, CLASSES, target=TARGET, source=SOURCE)
    assert abs(said.groups[0].predicted.spearman) < 0.2
    assert said.groups[2].masks < 30


def test_a_class_that_cannot_reach_the_target_says_so():
    """A threshold for a class that is never precise enough, or a class of few masks judged by chance."""
    few = [*CLASSES, Category(id=9, name="rare"), Category(id=11, name="never seen")]
    sample = drawn(3000, classes=(1, 7), hopeless=7)
    rare = np.flatnonzero(sample.classes == 1)[:20]
    classes = sample.classes.copy()
    classes[rare] = 9
    made, _ = fitting.fit(dataclasses.replace(sample, classes=classes), few, target=TARGET, source=SOURCE)
    first, hopeless, rare_one, unseen = made.classes
    assert (first.basis, hopeless.basis, rare_one.basis, unseen.basis) == ("class", "none", "all", "all")
    assert hopeless.threshold is None
    assert hopeless.kept == 0
    assert rare_one.threshold == unseen.threshold == made.threshold is not None
    kept = made.keeps(instances([square(1, 1)] * 2, [1, 1], [1, 7], sharp=[1, 1], noise=[0, 0]))
    assert kept.tolist() == [True, False]


def test_thresholds_are_judged_on_images_that_they_were_not_chosen_on():
    """Precision that looks reached because the threshold was chosen on the very masks that are counted."""
    rng = np.random.default_rng(0)
    dark = np.arange(1100) < 100  # on the images of a single fold, where they all are right
    sample = fitting.Sample(
        folds=np.where(dark, 0, rng.integers(1, fitting.FOLDS, 1100)),
        classes=np.where(dark, 7, 1),
        columns={"score": np.where(dark, 0.9, rng.uniform(0, 1, 1100)), "log_area": rng.normal(5, 1, 1100)},
        iou=np.where(dark, 0.9, 0.6),
        right=dark,
        objects={7: 100},
    )
    made, _ = fitting.fit(sample, CLASSES, target=TARGET, source=SOURCE)
    assert made.classes[1].basis == "class"
    assert made.classes[1].kept == 0  # of the other folds no threshold for them can be learnt


def test_too_little_to_fit_to():
    """A fit to three masks, or to none that is right."""
    sample = drawn(100)
    with pytest.raises(UserError, match="100 masks on images of the truth, and 0 of them match"):
        fitting.fit(dataclasses.replace(sample, iou=np.zeros(100)), CLASSES, target=TARGET, source=SOURCE)


def test_folds_go_by_the_key():
    """Images that change folds with their order would be judged by models that saw them."""
    assert [fitting.fold_of(f"{number}.jpg") for number in range(6)] == [fitting.fold_of(f"{n}.jpg") for n in range(6)]
    assert {fitting.fold_of(f"{number}.jpg") for number in range(50)} == set(range(fitting.FOLDS))


# The record


def test_round_trip(fitted, store: Store, tmp_path):
    """A file that says something else than what was fitted."""
    path = str(tmp_path / "calibration.json")
    calibration.write(fitted[0], path, store)
    assert calibration.read(path, store) == fitted[0]
    assert (tmp_path / "calibration.json").stat().st_size < 20_000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda value: value.update(extra=1), r"extra: Unexpected keyword argument"),
        (lambda value: value.update(format_version=2), r"format_version: Input should be 1"),
        (lambda value: value.update(threshold=float("nan")), r"calibration"),
        (lambda value: value["right"]["terms"][0].update(knots=[2, 1]), r"right\.terms\.0"),
        (lambda value: value["right"]["terms"][0].update(values=[]), r"as many values as knots"),
        (lambda value: value["classes"].clear(), r"classes: .*at least 1 item"),
        (lambda value: value.pop("source"), r"source: "),
    ],
)
def test_strict_reading(fitted, store: Store, tmp_path, change, sentence):
    """A file of another tool or version, or one that was edited wrongly, believed in part."""
    path = tmp_path / "calibration.json"
    calibration.write(fitted[0], str(path), store)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=sentence) as caught:
        calibration.read(str(path), store, key="labeler.quality")
    assert str(caught.value).startswith("labeler.quality")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 10000])
def test_no_calibration_at_all(store: Store, tmp_path, text):
    """A traceback for a file that is no JSON."""
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"x\.json is no calibration"):
        calibration.read(str(path), store)
    with pytest.raises(UserError, match="--thresholds"):
        calibration.read(str(tmp_path / "none.json"), store)


def test_apply(fitted):
    """Raw scores lost, columns of the wrong type or length, or other columns dropped."""
    made, _ = fitted
    found = instances(
        [square(1, 1)] * 3, [0.99, 0.99, 0.05], [1, 1, 1], sharp=[1, 0, 1], noise=[0, 0, 0], other=[1, 2, 3]
    )
    applied = made.apply(found)
    assert (applied.scores == found.scores).all()
    assert applied.quality["other"].tolist() == [1, 2, 3]
    predicted, probability = applied.quality["predicted_iou"], applied.quality["probability"]
    assert predicted.dtype == probability.dtype == np.float32
    assert predicted[0] > predicted[1] > predicted[2]
    assert probability[0] > 0.9 > 0.1 > probability[2]
    assert made.keeps(applied).tolist() == made.keeps(found).tolist() == [True, True, False]
    assert (made.apply(applied).quality["probability"] == probability).all()
    assert len(made.apply(NO_INSTANCES).quality["probability"]) == 0
    assert made.keeps(NO_INSTANCES).shape == (0,)


def test_masks_that_nothing_is_known_of(fitted):
    """What a person drew has no columns: no probability is made up for it, and nothing fails."""
    made, _ = fitted
    for quality in ({}, {"sharp": [np.nan], "noise": [np.nan]}):
        applied = made.apply(instances([square(1, 1)], [1.0], [1], **quality))
        assert np.isnan(applied.quality["predicted_iou"]).all()
        assert np.isnan(applied.quality["probability"]).all()


def test_labels_without_the_columns_are_refused(fitted):
    """All masks of an older run left out, or all kept, without a word."""
    with pytest.raises(UserError, match=r"column noise, which the labels do not have"):
        fitted[0].keeps(instances([square(1, 1)], [0.9], [1], sharp=[1]))


def test_other_classes(fitted):
    """Thresholds of one data set applied to the classes of another."""
    made, _ = fitted
    made.check([*CLASSES, Category(id=99, name="new")], "runs/b")
    with pytest.raises(UserError, match=r"runs/b: category 7 is 'cat', and 'dark' in the calibration"):
        made.check([Category(id=7, name="cat")], "runs/b")
    stranger = instances([square(1, 1)], [0.99], [99], sharp=[1], noise=[0])
    assert made.keeps(stranger).tolist() == [True]


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run")
    make_run(Store(), str(folder / "run"), folder / "inputs", shards=12, formats=("parquet",))
    return str(folder / "run")


def truth_of(run: str, most: int) -> dict:
    """The labels of a run as its truth, but for the masks of low contrast, which are taken for wrong."""
    rows = [row for row in runs.read_rows(Store(), run) if row.status != "quarantined"][:most]
    annotations = [
        {"image_id": number, "category_id": int(x.category_ids[i]), "iscrowd": 0, "area": int(x.areas[i]),
         "bbox": x.boxes[i].tolist(), "segmentation": {"size": [row.height, row.width], "counts": x.counts[i]}}
        for number, row in enumerate(rows, start=1) for x in [row.instances] for i in range(len(x))
        if x.scores[i] > 0.75
    ]  # fmt: skip
    images = [
        {"id": number, "file_name": f"val/{row.key}", "height": row.height, "width": row.width}
        for number, row in enumerate(rows, start=1)
    ]
    categories = [{"id": one.id, "name": one.name} for one in CLASSES]
    annotations = [{"id": number, **one} for number, one in enumerate(annotations, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_command(run, tmp_path, capsys):
    """From a run to a file, a page and figures; masks with little contrast are found to be wrong."""
    truth, out, report = tmp_path / "truth.json", tmp_path / "c.json", tmp_path / "report"
    truth.write_text(json.dumps(truth_of(run, 40)))
    assert main(["calibrate", run, "--truth", str(truth), "--out", str(out), "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "40 images with truth" in printed
    assert "32 images of the run without truth" in printed  # 12 of them quarantined
    assert "dark" in printed
    made = calibration.read(str(out), Store())
    assert made.source.images == 40
    assert made.columns == ("contrast",)
    assert made.source.objects == len(json.loads(truth.read_text())["annotations"])
    [row] = [row for row in runs.read_rows(Store(), run) if row.key == "0-0.png"]
    probability = made.apply(row.instances).quality["probability"]
    assert (np.diff(probability) <= 0.02).all()  # best score first
    figures_ = json.loads((report / "calibration.json").read_text())
    assert figures_["calibration_error"]["probability"] < figures_["calibration_error"]["score"]
    assert (report / "reliability.png").read_bytes().startswith(b"\x89PNG")
    page = (report / "calibration.html").read_text()
    assert "bright" in page
    assert "data:image/png" in page

    assert main(["calibrate", run, "--truth", str(truth), "--check", str(out), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["images"] == 40
    assert [one["threshold"] for one in checked["classes"]] == [one.threshold for one in made.classes]


def test_classes_that_the_truth_does_not_name_are_not_judged(run, tmp_path):
    """A truth of cars alone would teach that every pedestrian is wrong, and that no mask can be trusted."""
    truth = truth_of(run, 40)
    truth["categories"] = [one for one in truth["categories"] if one["name"] == "bright"]
    truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] == 1]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    words = ["calibrate", run, "--truth", str(tmp_path / "truth.json"), "--out", str(tmp_path / "c.json")]
    assert main(words) == 0
    made = calibration.read(str(tmp_path / "c.json"), Store())
    keys = {image["file_name"].removeprefix("val/") for image in truth["images"]}
    rows = [row for row in runs.read_rows(Store(), run) if row.key in keys]
    assert made.source.masks == sum(int((row.instances.category_ids == 1).sum()) for row in rows)
    dark = next(one for one in made.classes if one.name == "dark")
    assert (dark.masks, dark.kept, dark.threshold) == (0, 0, made.threshold)


ELSEWHERE = {"image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2]], "id": 1}
IMAGE = {"id": 1, "file_name": "0-0.png", "height": 32, "width": 48}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"categories": [{"id": 1, "name": "dim"}]}, r"category 1 is 'dim', and in the run 'bright'"),
        ({"categories": [{"id": 5, "name": "x"}], "annotations": [{**ELSEWHERE, "category_id": 5}]}, r"no category of"),
        ({"images": [{**IMAGE, "file_name": "z.jpg"}]}, r"none of the images of .* file names are like 'z\.jpg'"),
        ({"images": [{**IMAGE, "height": 99}]}, r"0-0\.png is 48 x 32 pixels in the run, and 48 x 99 in the truth"),
        ({}, r"the run has \d masks on images of the truth, and 0 of them match an object at IoU 0\.5: too few"),
        ({"annotations": []}, r"--truth: .*truth\.json has no annotations"),
    ],
)
def test_truth_that_does_not_fit(run, tmp_path, capsys, changes, sentence):
    """Figures against a truth of something else; a traceback; or a file that is left behind."""
    truth, out = tmp_path / "truth.json", tmp_path / "c.json"
    classes = [{"id": one.id, "name": one.name} for one in CLASSES]
    truth.write_text(json.dumps({"images": [IMAGE], "annotations": [ELSEWHERE], "categories": classes, **changes}))
    assert main(["calibrate", run, "--truth", str(truth), "--out", str(out)]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "give one of --out"),
        (["--out", "c.json", "--check", "c.json"], "give one of --out"),
        (["--check", "c.json", "--iou", "0.5"], "--iou is for --out; --check goes by what its file was fitted for"),
        (["--check", "c.json", "--precision", "0.8"], "--precision is for --out"),
        (["--out", "t.json"], "--out is the file of --truth"),
        (["--out", "c.json", "--iou", "nan"], "'--iou': nan is not a finite number"),
        (["--out", "c.json", "--precision", "nan"], "'--precision': nan is not a finite number"),
        (["--out", "file/c.json"], "--out cannot be written: file/c.json: "),
        (["--out", "."], "--out is ., a folder; name the file"),
        (["--out", "c.json", "--report", "file"], "--report is file, a file; name a folder"),
        (["--out", "c.json", "--report", ""], "'--report': it is empty"),
    ],
)
def test_options_that_do_not_fit(run, tmp_path, capsys, monkeypatch, options, sentence):
    """Work that is done and written nowhere, options that do nothing, and a truth that is lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "t.json").write_text("{}")
    assert main(["calibrate", run, "--truth", "t.json", *options]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "t.json"]
    assert (tmp_path / "t.json").read_text() == "{}"


def test_quality_model_by_hand():
    """Another mixture than predicted = found * iou + (1 - found) * rest."""
    constant = {"terms": (), "offsets": {}}
    model = QualityModel(
        found=additive.Additive(link="logistic", intercept=0.0, **constant),
        iou=additive.Additive(link="identity", intercept=0.9, **constant),
        rest=0.2,
    )
    assert model({"score": np.ones(2)}).tolist() == pytest.approx([0.55, 0.55])
