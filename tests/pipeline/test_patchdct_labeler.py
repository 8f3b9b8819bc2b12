"""The adapter of the model: which of the user's settings reach it, and what its labels' fingerprint tells apart."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from patchdct import scenes
from patchdct.build import build_model
from patchdct.checkpoint import read_checkpoint, save_checkpoint
from patchdct.config import load_config
from patchdct.predict import Predictor
from pipeline import calibration, founding, patchdct_labeler, runs
from pipeline.calibration import additive
from pipeline.calibration.record import ClassThreshold, QualityModel, Source, Target
from pipeline.config import InputConfig, LabelConfig, LabelerConfig, OutputConfig, TtaConfig
from pipeline.errors import UserError
from pipeline.labelers import batch_size, build, staged
from pipeline.patchdct_labeler import PatchDCTLabeler, resizes_on_device
from pipeline.records import LabelerInfo
from pipeline.store import Store
from pipeline.worker import Run, Worker
from tests.fakes import ThresholdLabeler, write_tar
from tests.patchdct import small
from tests.small_runs import config_of, found_run, make_inputs

WEIGHTS = str(small.CONFIGS / "patchdct_demo.pth")


def labeler(store, **settings) -> PatchDCTLabeler:
    return PatchDCTLabeler(LabelerConfig(**{"weights": WEIGHTS, "min_size": 160, **settings}), store)


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture(scope="module")
def plain(store) -> PatchDCTLabeler:
    return labeler(store)


@pytest.fixture(scope="module")
def flipped(store) -> PatchDCTLabeler:
    return labeler(store, tta=TtaConfig(flip=True))


def test_augmentation_reaches_the_model(plain, flipped):
    """With labeler.tta the labels are those of several versions, in the same form, of the same things."""
    image = scenes.draw_scene(102, 160).image
    [expected], [found] = plain.label([image]), flipped.label([image])
    assert found.counts != expected.counts
    assert found.scores.dtype == np.float32
    best, same = found.scores.argmax(), expected.scores.argmax()
    assert found.category_ids[best] == expected.category_ids[same]
    np.testing.assert_allclose(found.boxes[best], expected.boxes[same], atol=4)


@pytest.mark.parametrize("made", ["plain", "flipped"])
def test_steps(made, request):
    """Labels that depend on whether a worker overlaps the steps, or on which images share a batch."""
    one = request.getfixturevalue(made)
    images = [scenes.draw_scene(seed, 160).image for seed in (102, 103)] + [scenes.draw_scene(104, 200).image[:100]]
    assert staged(one) is one
    prepared = [one.prepare(image) for image in images]
    assert prepared[0].like == prepared[1].like != prepared[2].like
    assert prepared[0].nbytes == 3 * 160 * 160 * (2 if made == "flipped" else 1)
    steps = [*one.encode(one.find(prepared[:2])), *one.encode(one.find(prepared[2:]))]
    for found, expected in zip(steps, one.label(images), strict=True):
        assert found.counts == expected.counts
        assert len(found) > 0
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


def test_the_fast_model_labels_like_the_one_that_was_built(store, plain):
    """Masks that were made faster, and others than those that the checkpoint was measured by."""
    weights = read_checkpoint(WEIGHTS)
    settings = ["INPUT.MIN_SIZE_TEST", 160, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, "TEST.DETECTIONS_PER_IMAGE", 100]
    cfg = load_config(text=weights.config, overrides=settings)
    built = Predictor(build_model(cfg, weights=weights)[0], cfg)
    images = [scenes.draw_scene(seed, 160).image for seed in range(200, 206)]
    as_built, fast = built(images), plain.label(images)
    assert [len(found) for found in fast] == [len(found.counts) for found in as_built]
    pairs = [pair for a, b in zip(fast, as_built, strict=True) for pair in zip(a.counts, b.counts, strict=True)]
    assert sum(a != b for a, b in pairs) <= 0.02 * len(pairs)
    assert len(pairs) > 30

    lower = labeler(store, precision="bf16")
    assert lower.fingerprint != plain.fingerprint
    for found, expected in zip(lower.label(images), fast, strict=True):
        sure, its = expected.scores > 0.5, found.scores > 0.5
        assert abs(int(sure.sum()) - int(its.sum())) <= 1
        areas = np.sort(found.areas[its])[-2:], np.sort(expected.areas[sure])[-2:]
        np.testing.assert_allclose(*areas, rtol=0.1)


def test_where_images_are_resized(store, plain, monkeypatch):
    """Labels that change with where images are resized; or a setting without effect on the machines that it is for."""
    images = [scenes.draw_scene(seed, 200).image for seed in (106, 107)]
    expected = plain.label(images)
    assert resizes_on_device(LabelerConfig(resize="gpu"), "cuda")
    assert not resizes_on_device(LabelerConfig(resize="gpu"), "cpu")
    assert not resizes_on_device(LabelerConfig(), "cuda")
    for late in (False, True):
        monkeypatch.setattr(patchdct_labeler, "resizes_on_device", lambda config, _, late=late: late)
        made = labeler(store, resize="gpu")
        assert [made.prepare(image).nbytes for image in images] == [3 * (200**2 if late else 160**2)] * 2
        assert made.fingerprint == plain.fingerprint
        for found, same in zip(made.label(images), expected, strict=True):
            assert found.counts == same.counts
            assert len(found) > 0


def test_a_run_goes_on_where_images_are_resized_elsewhere(store, tmp_path):
    """A run that was begun on machines without GPUs, and is refused on those with: its labels are the same."""
    config = config_of(make_inputs(tmp_path / "in", 1), str(tmp_path / "run"))
    one = build(config.labeler, store)
    made = LabelerInfo(fingerprint=one.fingerprint, categories=one.categories)
    first, _ = founding.open_run(config, store)
    founding.found(config, first, made, store)
    elsewhere = dataclasses.replace(config, labeler=dataclasses.replace(config.labeler, resize="gpu"))
    again, was_there = founding.open_run(elsewhere, store)
    assert was_there
    assert founding.found(elsewhere, again, made, store).run_id == first.run_id


def test_scaled_decoding(store, tmp_path):
    """Masks in the pixels of the reduced image; or another thing on it, because it was stretched."""
    scene = scenes.draw_scene(105, 320)
    large = Image.fromarray(scene.image).resize((1280, 1284), Image.Resampling.BICUBIC)
    write_tar(tmp_path / "in/0.tar", {"scene.jpg": jpeg(large), "small.jpg": jpeg(large.resize((300, 200)))})
    rows = {}
    for scaled in (False, True):
        uri = str(tmp_path / f"scaled-{scaled}")
        config = config_of(str(tmp_path / "in"), uri)
        settings = LabelerConfig(weights=WEIGHTS, score_threshold=0.5, scaled_decoding=scaled)
        config = dataclasses.replace(config, labeler=settings)
        manifest, _ = found_run(store, config)
        Worker(config).label(manifest.shards[0], Run(id=manifest.run_id, uri=uri, config=config), 0)
        rows[scaled] = list(runs.read_rows(store, uri))
    for plain_row, scaled_row in zip(rows[False], rows[True], strict=True):
        assert (scaled_row.height, scaled_row.width) == (plain_row.height, plain_row.width)
        assert len(scaled_row.instances) == len(plain_row.instances) > 2
        masks, expected = (
            mask_api.decode([{"size": [row.height, row.width], "counts": counts} for counts in row.instances.counts])
            for row in (scaled_row, plain_row)
        )
        assert 0.1 < expected.any(2).mean() < 0.9
        assert (masks.any(2) != expected.any(2)).mean() < 0.01
    assert rows[False][0].instances.counts != rows[True][0].instances.counts
    assert rows[False][1].instances.counts == rows[True][1].instances.counts


def test_scaled_decoding_takes_a_labeler_that_resizes(store):
    """A labeler that is shown an eighth of an image, and draws its masks on that."""
    config = LabelerConfig(name="tests.fakes:ThresholdLabeler", scaled_decoding=True)
    with pytest.raises(UserError, match=r"scaled_decoding is true, but ThresholdLabeler takes images as they are"):
        Worker(dataclasses.replace(config_of("in", "out"), labeler=config))


def test_batch_size_by_trial(store, plain):
    """The word `auto` that reaches the worker as it is; or a trial for every shard."""
    config = LabelerConfig(weights=WEIGHTS, batch_size="auto")
    sizes = {batch_size(staged(plain), config) for _ in range(3)}
    assert len(sizes) == 1
    assert sizes <= {1, 2, 4, 8, 16, 32, 64}
    assert batch_size(staged(plain), LabelerConfig(weights=WEIGHTS, batch_size=5)) == 5
    assert batch_size(staged(ThresholdLabeler(config, store)), config) == 8


def test_fingerprint(store, plain, flipped):
    """A run that shows its images in other versions must not go on in one that does not."""
    scaled = labeler(store, tta=TtaConfig(flip=True, scales=(160,)))
    assert len({plain.fingerprint, flipped.fingerprint, scaled.fingerprint}) == 3
    assert labeler(store, tta=None).fingerprint == plain.fingerprint


def test_model_without_masks(store, tmp_path):
    """A detector of boxes is refused when the run starts, and not at the first image."""
    cfg = load_config(small.CONFIGS / "demo_detector.yaml")
    path, state = tmp_path / "detector.pth", build_model(cfg)[0].state_dict()
    save_checkpoint(path, state, categories=scenes.CATEGORIES, config_text=cfg.dump(), provenance=None)
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON is False"):
        labeler(store, weights=str(path))


# Quality columns


def calibrated(folder, features) -> str:
    """A calibration whose predicted IoU is the logistic function of `features`, each times 1."""
    terms = tuple(additive.Term(feature=name, knots=(0.0, 1.0), values=(-1.0, 1.0)) for name in features)
    found = additive.Additive(link="logistic", intercept=0.0, terms=terms)
    record = calibration.Calibration(
        source=Source(
            run="r", run_id="1", fingerprint="f", truth="t", images=1, masks=1, objects=1, date="d", version="v"
        ),
        target=Target(precision=0.9, iou=0.5, confidence=0.9),
        quality=QualityModel(found=found, iou=additive.Additive(link="identity", intercept=1.0, terms=()), rest=0.0),
        right=found,
        threshold=0.5,
        classes=(ClassThreshold(id=1, name="x", threshold=0.5, basis="all", masks=0, objects=0, kept=0, right=0),),
    )
    path = folder / f"{'-'.join(features)}.json"
    calibration.write(record, str(path), Store())
    return str(path)


def test_quality_columns(plain, flipped):
    """Columns that the worker finds missing; or that another labeler of the same run calls otherwise."""
    image = scenes.draw_scene(102, 160).image
    for one in (plain, flipped):
        [found] = one.label([image])
        assert tuple(found.quality) == one.quality
        assert len(set(one.quality)) == 10
        for values in found.quality.values():
            assert values.dtype == np.float32
            assert values.shape == (len(found),)
            assert np.isfinite(values).all()
        assert (found.quality["predicted_iou"] == found.quality["expected_iou"]).all()
        assert (found.quality["fragments"] >= 1).all()
        touching = (found.boxes[:, :2] == 0).any(1) | (found.boxes[:, :2] + found.boxes[:, 2:] == 160).any(1)
        assert (found.quality["touches_border"] == touching).all()
        [empty] = one.label([np.full((160, 160, 3), 127, np.uint8)])
        assert all(len(values) == len(empty) for values in empty.quality.values())


def test_a_quality_model_makes_the_column(store, plain, tmp_path):
    """A run whose predicted_iou is not what was fitted; or that goes on with another model than it began with."""
    image = scenes.draw_scene(102, 160).image
    fitted = labeler(store, quality=calibrated(tmp_path, ["score"]))
    [expected], [found] = plain.label([image]), fitted.label([image])
    assert found.counts == expected.counts
    assert (found.quality["expected_iou"] == expected.quality["expected_iou"]).all()
    by_hand = 1 / (1 + np.exp(1 - 2 * found.scores))
    np.testing.assert_allclose(found.quality["predicted_iou"], by_hand, atol=1e-5)
    other = labeler(store, quality=calibrated(tmp_path, ["score", "box_iou"]))
    assert len({plain.fingerprint, fitted.fingerprint, other.fingerprint}) == 3


def test_flip_agreement(store, plain, tmp_path):
    """Masks that change because somebody asked how sure they are; or a run in which some rows have the column."""
    image = scenes.draw_scene(102, 160).image
    asked = labeler(store, flip_agreement=True, quality=calibrated(tmp_path, ["score", "flip_agreement"]))
    [expected], [found] = plain.label([image]), asked.label([image])
    assert found.counts == expected.counts
    assert (found.scores == expected.scores).all()
    assert asked.quality == (*plain.quality, "flip_agreement")
    assert 0.5 < found.quality["flip_agreement"][found.scores > 0.9].mean() < 1
    assert asked.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"quality": ["flip_agreement"]}, r"column flip_agreement, .*set labeler\.flip_agreement to true"),
        ({"quality": ["depth"]}, r"labeler\.quality: .*depth\.json goes by the column depth, which is not made here"),
        ({"quality": None}, r"labeler\.quality: .*none\.json"),
        ({"flip_agreement": True, "tta": TtaConfig(flip=True)}, r"flip_agreement is true together with labeler\.tta"),
    ],
)
def test_quality_that_cannot_be_had(store, tmp_path, settings, sentence):
    """A worker that fails at its first image instead of a sentence."""
    if "quality" in settings:
        features = settings["quality"]
        path = calibrated(tmp_path, features) if features else str(tmp_path / "none.json")
        settings = {**settings, "quality": path}
    with pytest.raises(UserError, match=sentence):
        labeler(store, **settings)


def test_columns_to_order_are_named_where_they_are_asked_for():
    """A run from before such columns were known that may not go on; or one whose columns change on the way."""
    inputs = {"input": InputConfig(uri="a"), "output": OutputConfig(uri="b")}
    plain = LabelConfig(**inputs).labels_depend_on()["labeler"]
    assert not {"quality", "flip_agreement"} & plain.keys()
    asked = LabelConfig(**inputs, labeler=LabelerConfig(quality="q.json", flip_agreement=True)).labels_depend_on()
    assert (asked["labeler"]["quality"], asked["labeler"]["flip_agreement"]) == ("q.json", True)


def test_the_quality_model_of_the_demo(plain):
    """A file beside the demo's checkpoint that a later version, or another set of columns, does not take."""
    shipped = calibration.read(str(small.CONFIGS / "patchdct_demo_quality.json"), Store())
    assert set(shipped.columns) <= set(plain.quality)
    assert [(one.id, one.name) for one in shipped.classes] == list(scenes.CATEGORIES)
    shipped.check(plain.categories, "the demo")
