"""The gallery: what is chosen, what is written, and what becomes of names, keys and images that nobody should trust."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import cli, corrections, runs
from pipeline.config import LimitsConfig
from pipeline.errors import ImageError, UserError
from pipeline.gallery import gallery
from pipeline.gallery.cards import picture_of, scaled_counts
from pipeline.gallery.choosing import Chooser, worst_value
from pipeline.gallery.comparing import Objects, change, compare
from pipeline.records import NO_INSTANCES, ImageLabels, ImageRecord, Instances
from pipeline.store import Store, join
from pipeline.taxonomy import Taxonomy
from pipeline.view import View
from tests import small_runs
from tests.fakes import ThresholdLabeler, draw, write_tar

EVIL_NAME = "</script><img src=x onerror=window.pwned=1>"
EVIL_KEY = "../../<img src=x onerror=window.pwned=2>'\"&amp;\u2028`${window.pwned=3}.png"
LIMITS = LimitsConfig()


class JudgedLabeler(ThresholdLabeler):
    """Its scores are lower, and it says how good its masks are, by their places in the order of scores."""

    quality = ("predicted_iou", "touches_border", "</script>")

    def label(self, images):
        return [replace(one, scores=one.scores**2, quality=self._quality(len(one))) for one in super().label(images)]

    def _quality(self, number):
        steps = np.linspace(0.3, 0.9, max(number, 1), dtype=np.float32)[:number]
        return {
            "predicted_iou": steps,
            "touches_border": (steps > 0.5).astype(np.float32),
            "</script>": np.where(steps > 0.6, np.nan, steps).astype(np.float32),
        }


def hostile_run(folder: Path, store: Store) -> str:
    """Make a run of 20 images with an evil key and quality columns, and return its URI."""
    for shard in range(2):
        files = {f"cam{shard}/{number}.png": draw(10 * shard + number, width=64, height=40) for number in range(9)}
        if shard == 0:
            files |= {EVIL_KEY: draw(77), "broken.png": draw(3)[:90]}
        write_tar(folder / "in" / f"{shard}.tar", files)
    config = small_runs.config_of(folder / "in", str(folder / "run"), ("parquet",))
    config = replace(config, labeler=replace(config.labeler, name="tests.pipeline.test_gallery:JudgedLabeler"))
    manifest, labeler = small_runs.found_run(store, config)
    for shard in manifest.shards:
        small_runs.label_shard(
            shard,
            run=small_runs.Run(id=manifest.run_id, uri=config.output.uri, config=config),
            store=store,
            labeler=labeler,
        )
    return config.output.uri


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Such a run: (store, its URI)."""
    store = Store()
    return store, hostile_run(tmp_path_factory.mktemp("hostile"), store)


class Page:
    """A gallery as it lies on a storage, read without a browser."""

    def __init__(self, store: Store, out: str) -> None:
        self.html = store.get(join(out, "index.html")).decode()
        start = re.search(r'<script type="application/json" id="start">(.*?)</script>', self.html, re.DOTALL)
        self.start = json.loads(start[1])
        self.tables = [self._script(store.get(join(out, "files", name)), "table") for name in self.start["tables"]]
        self._files = lambda name: store.get(join(out, "files", name))

    def all(self, key: str) -> list:
        return [value for table in self.tables for value in table[key]]

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([np.frombuffer(base64.b64decode(dict(t["columns"])[name]), "<f4") for t in self.tables])

    def classes(self) -> list[int]:
        return [int(i) for t in self.tables for i in np.frombuffer(base64.b64decode(t["classes"]), "<u2")]

    def masks(self) -> list[list[str]]:
        found = []
        for table in self.tables:
            for place in range(len(table["keys"])):
                name = table["maskFiles"][place // table["masksPerFile"]]
                rows = self._script(self._files(name), "masks")
                found.append(rows[place % table["masksPerFile"]][0].split())
        return found

    def picture(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self._files(name)))

    @staticmethod
    def _script(data: bytes, function: str):
        found = re.fullmatch(rf"patchlabelGallery\.{function}\((.*)\)\n", data.decode("ascii"))
        return json.loads(found[1])


def names(store: Store, out: str) -> list[str]:
    return sorted(info.uri.rpartition("/")[2] for info in store.list(join(out, "files", ""), literal=True))


def instances(count: int, *, scores: float | list[float] = 0.9, iou: list[float] | None = None) -> Instances:
    one = mask_api.encode(np.asfortranarray(np.ones((4, 4), np.uint8)))["counts"].decode()
    return Instances(
        category_ids=np.ones(count, np.int32),
        scores=np.broadcast_to(np.array(scores, np.float32), count).copy(),
        boxes=np.tile(np.array([0, 0, 4, 4], np.float32), (count, 1)),
        areas=np.full(count, 16),
        counts=(one,) * count,
        quality={} if iou is None else {"predicted_iou": np.array(iou, np.float32)},
    )


def labels_of(key: str, found: Instances = NO_INSTANCES, *, height: int = 4, width: int = 4, **more) -> ImageLabels:
    status = "labelled" if len(found) else "empty"
    values = {"image_id": 1, "uri": "", "status": status, **more}
    return ImageLabels(key=key, height=height, width=width, instances=found, **values)


def commit_like(shard_id: str):
    counts = dict.fromkeys(("images", "labelled", "empty", "quarantined", "instances"), 0)
    more = {"attempt": "", "outputs": {}, "reasons": {}, "fingerprint": "", "seconds": 0.0, "version": ""}
    return small_runs.Commit(shard_id=shard_id, **counts, **more)


# --- What is chosen


def choose(rows: int, limit: int, *, shards: int = 4) -> dict[tuple[str, str], bool]:
    """Rows of which number i has a worst IoU of i / rows, but for every third, which is empty."""
    chooser, values = Chooser(limit), np.random.default_rng(3).permutation(rows) / rows
    for number in range(rows):
        commit = commit_like(str(number * shards // rows))
        iou = float(values[number])
        chooser.add(commit, labels_of(f"{number}", instances(2, iou=[0.99, iou]) if number % 3 else NO_INSTANCES))
    return {(one.commit.shard_id, key): worst for one in chooser.chosen() for key, worst in one.worst.items()}


def test_half_of_what_is_chosen_are_the_worst_of_the_run():
    """A gallery of a large run would show images that do not need a look."""
    chosen = choose(3000, 200)
    values = np.random.default_rng(3).permutation(3000) / 3000
    worst = {key for (_, key), is_worst in chosen.items() if is_worst}
    assert len(chosen) == 200
    assert len(worst) == 100
    assert worst == {str(number) for number in sorted((n for n in range(3000) if n % 3), key=values.__getitem__)[:100]}


def test_the_other_half_is_an_even_sample():
    """The rest would come from the first shards, or leave out the images without masks."""
    chosen = choose(30_000, 2000, shards=10)
    sample = [(shard, int(key)) for (shard, key), worst in chosen.items() if not worst]
    counts = np.bincount([int(shard) for shard, _ in sample], minlength=10)
    assert len(sample) == 1000
    assert counts.min() > 60  # of 100 on average, with a deviation of 9.5
    assert counts.max() < 140
    assert 0.25 < np.mean([number % 3 == 0 for _, number in sample]) < 0.42


def test_the_choice_is_the_same_each_time_and_a_small_run_is_shown_whole():
    """Two galleries of one run would not show the same images."""
    assert choose(500, 50) == choose(500, 50)
    assert len(choose(40, 50)) == 40


def test_what_is_kept_does_not_grow_with_the_run():
    """A run of 100 million images would fill the memory."""
    chooser = Chooser(10)
    for number in range(2000):
        chooser.add(commit_like("a"), labels_of(str(number), instances(1, iou=[number % 7 / 7])))
    assert len(chooser._worst) + len(chooser._sample) <= 15
    assert chooser.images == chooser.masks == 2000


def test_the_worst_value_leaves_out_masks_that_nobody_would_use():
    """With a low threshold each image has a hopeless mask somewhere, and all would be equally bad."""
    assert worst_value(instances(3, scores=[0.9, 0.8, 0.06], iou=[0.9, 0.7, 0.1])) == pytest.approx(0.7)
    assert worst_value(instances(2, scores=[0.3, 0.2], iou=[0.6, 0.1])) == pytest.approx(0.6)
    assert worst_value(instances(2, scores=[0.9, 0.6])) == pytest.approx(0.6)
    assert worst_value(instances(2, scores=[0.9, 0.6], iou=[0.8, np.nan])) == pytest.approx(0.6)


# --- What is written


def test_the_page_holds_the_rows_of_the_run(hostile, tmp_path):
    """The gallery would show other masks, scores or qualities than the run has."""
    store, uri = hostile
    written = gallery(runs.opened(store, uri), str(tmp_path))
    page, rows = Page(store, str(tmp_path)), list(runs.read_rows(store, uri))
    assert page.all("keys") == [row.key for row in rows]
    assert page.all("status") == [row.status for row in rows]
    assert page.all("errors") == [row.error for row in rows]
    assert page.all("counts") == [len(row.instances) for row in rows]
    assert page.masks() == [list(row.instances.counts) for row in rows]
    ids = [page.start["classes"][place][0] for place in page.classes()]
    assert ids == [int(i) for row in rows for i in row.instances.category_ids]
    np.testing.assert_array_equal(page.column("score"), np.concatenate([row.instances.scores for row in rows]))
    for name in JudgedLabeler.quality:
        expected = np.concatenate([row.instances.quality.get(name, row.instances.scores[:0]) for row in rows])
        np.testing.assert_array_equal(page.column(name), expected)
    assert (written.images, written.masks) == (len(rows), sum(len(row.instances) for row in rows))
    assert (written.of_images, written.of_masks) == (written.images, written.masks)
    for row, name in zip(rows, page.all("pictures"), strict=True):
        assert (name is None) == (row.status == "quarantined")
        assert name is None or page.picture(name).size == (row.width, row.height)


def test_a_limit_is_kept_and_told(hostile, tmp_path):
    """A part of a run would pass for the whole."""
    store, uri = hostile
    written = gallery(runs.opened(store, uri), str(tmp_path), limit=5)
    page = Page(store, str(tmp_path))
    assert (written.images, written.of_images) == (5, 20)
    assert (page.start["images"], page.start["about"]["images"]) == (5, 20)
    assert sum(page.all("worst")) == page.start["about"]["worst"] == 3


def test_hostile_names_stay_text(hostile, tmp_path):
    """A key or class name of the data set would run as a script in the browser of whoever looks at it."""
    store, uri = hostile
    taxonomy = Taxonomy(names={"bright": EVIL_NAME}, source="test")
    out = tmp_path / "deep" / "down"
    gallery(runs.opened(store, uri, View(taxonomy=taxonomy)), str(out))
    page = Page(store, str(out))
    assert EVIL_KEY in page.all("keys")
    assert EVIL_NAME in [name for _, name in page.start["classes"]]
    texts = [page.html, *(path.read_text() for path in (out / "files").glob("*.js"))]
    assert not any("onerror" in text and "<img" in text for text in texts)
    assert page.html.count("</script>") == 2
    assert all(text.isascii() for text in texts[1:])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in written} == {out, out / "files"}
    assert all(re.fullmatch(r"[0-9a-f]{32}\.(js|jpg)", path.name) for path in (out / "files").iterdir())


def test_a_new_gallery_does_not_mix_with_an_older_one(hostile, tmp_path):
    """Files of a former gallery would stay for ever, or a page would show what another run has."""
    store, uri = hostile
    gallery(runs.opened(store, uri), str(tmp_path))
    first = names(store, str(tmp_path))
    (tmp_path / "files" / "notes.txt").write_text("mine")
    (tmp_path / "mine.html").write_text("mine")
    gallery(runs.opened(store, uri), str(tmp_path))
    assert names(store, str(tmp_path)) == sorted([*first, "notes.txt"])
    gallery(runs.opened(store, uri), str(tmp_path), limit=4)
    page, left = Page(store, str(tmp_path)), set(names(store, str(tmp_path)))
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert left - {"notes.txt"} == {
        *page.start["tables"],
        *(name for name in page.all("pictures") if name),
        *page.all("maskFiles"),
    }


class BreakingStore(Store):
    """A storage that fails at the n-th file, and remembers what was written."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.put_names: list[str] = []
        self._most = most

    def put(self, uri, data):
        if len(self.put_names) == self._most:
            raise OSError("the disk is full")
        self.put_names.append(uri)
        super().put(uri, data)


def test_the_page_is_written_last_so_that_a_failure_leaves_the_old_one_whole(hostile, tmp_path):
    """A page would name files that are not there."""
    store, uri = hostile
    gallery(runs.opened(store, uri), str(tmp_path), limit=3)
    before = Page(store, str(tmp_path))
    watching = BreakingStore()
    gallery(replace(runs.opened(store, uri), store=watching), str(tmp_path / "new"))
    assert watching.put_names[-1] == str(tmp_path / "new" / "index.html")
    breaking = BreakingStore(most=len(watching.put_names) - 1)
    with pytest.raises(OSError, match="full"):
        gallery(replace(runs.opened(store, uri), store=breaking), str(tmp_path))
    after = Page(store, str(tmp_path))
    assert after.html == before.html
    assert after.masks() == before.masks()
    assert all(after.picture(name) for name in after.all("pictures") if name)


def test_a_gallery_goes_to_any_storage(place, store, tmp_path):
    """--out would have to be a local folder."""
    small_runs.make_run(store, join(place, "run"), tmp_path / "in", shards=1)
    out = join(place, "gallery")
    gallery(runs.opened(store, join(place, "run")), out)
    page = Page(store, out)
    assert len(page.all("keys")) == small_runs.IMAGES
    assert set(names(store, out)) >= {name for name in page.all("pictures") if name}
    gallery(runs.opened(store, join(place, "run")), out, limit=2)
    assert len(names(store, out)) <= 4


def test_images_that_are_gone_are_counted_and_the_others_shown(store, tmp_path):
    """One tar that was deleted since would end the gallery of a run of thousands."""
    small_runs.make_run(store, str(tmp_path / "run"), tmp_path / "in", shards=2)
    (tmp_path / "in" / "0.tar").unlink()
    labels = runs.opened(store, str(tmp_path / "run"))
    written = gallery(labels, str(tmp_path / "out"))
    page = Page(store, str(tmp_path / "out"))
    gone = [key for key, problem in zip(page.all("keys"), page.all("problems"), strict=True) if problem]
    assert sorted(gone) == [f"0-{number}.png" for number in range(5)]
    assert written.gone == 5
    assert sum(name is not None for name in page.all("pictures")) == 5
    assert page.masks() == [list(row.instances.counts) for row in labels.all_rows()]


def test_an_image_that_does_not_come_costs_its_own_picture_only(store, tmp_path):
    """From a missing image on, each image of the shard would be shown with the masks of its neighbour."""
    uri = str(tmp_path / "run")
    manifest = small_runs.make_run(store, uri, tmp_path / "in", shards=1)
    small_runs.rewrite(store, uri, manifest, lambda row: replace(row, key="x.png") if row.key == "0-1.png" else row)
    written = gallery(runs.opened(store, uri), str(tmp_path / "out"))
    page = Page(store, str(tmp_path / "out"))
    assert page.all("keys")[:5] == ["0-0.png", "x.png", "0-2.png", "0-3.png", "0-4.png"]
    assert (written.gone, page.all("problems")[1]) == (1, "the image is no longer in its shard")
    for place in (0, 2, 3, 4):
        expected = np.asarray(Image.open(io.BytesIO(draw(place))), np.int16)
        found = np.asarray(page.picture(page.all("pictures")[place]), np.int16)
        assert np.abs(found - expected).mean() < 8


def test_a_corrected_image_says_how_much_was_changed(store, tmp_path):
    """What people changed most could not be found."""
    uri = str(tmp_path / "run")
    manifest = small_runs.make_run(store, uri, tmp_path / "in", shards=1)
    row = next(row for row in runs.read_rows(store, uri) if len(row.instances) >= 2)
    kept = np.zeros(len(row.instances), bool)
    kept[0] = True
    changed = replace(row, instances=row.instances.where(kept))
    rows, shard = {manifest.shards[0].id: [changed]}, {"by": "me", "source": "file", "source_sha256": "0" * 64}
    corrections.write(store, uri, manifest, rows, counts={"images": 1}, **shard)
    gallery(runs.opened(store, uri), str(tmp_path / "out"))
    page = Page(store, str(tmp_path / "out"))
    found = dict(zip(page.all("keys"), zip(page.all("corrected"), page.all("change"), strict=True), strict=True))
    assert found.pop(row.key) == (1, pytest.approx(1 - 2 / (1 + len(row.instances))))
    assert set(found.values()) == {(0, None)}


def test_a_view_is_kept_and_takes_the_place_of_the_first_filter(hostile, tmp_path):
    """--min-score would do nothing, or the page would hide what was asked for."""
    store, uri = hostile
    every = gallery(runs.opened(store, uri), str(tmp_path / "a"))
    some = gallery(runs.opened(store, uri, View(min_score=0.7)), str(tmp_path / "b"))
    assert Page(store, str(tmp_path / "a")).start["about"]["startScore"] == 0.5
    assert Page(store, str(tmp_path / "b")).start["about"]["startScore"] == 0
    assert 0 < some.masks < every.masks
    assert Page(store, str(tmp_path / "b")).column("score").min() >= np.float32(0.7)


def test_a_run_without_labels_is_refused(store, tmp_path):
    """A gallery without an image would be written."""
    small_runs.make_run(store, str(tmp_path / "run"), tmp_path / "in", done=0)
    with pytest.raises(UserError, match="no committed image"):
        gallery(runs.opened(store, str(tmp_path / "run")), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_wrote(hostile, tmp_path, capsys):
    """The line for the user would not tell a part from the whole."""
    _, uri = hostile
    assert cli.main(["gallery", uri, "--out", str(tmp_path), "--limit", "7", "--size", "64"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/index.html: 7 of 20 images, \d+ of \d+ masks, \d.*\n", out)
    assert cli.main(["gallery", uri, "--out", str(tmp_path), "--limit", "0"]) == 2


# --- Pictures and masks


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(100, 60), (2000, 1200)])
def test_pictures_are_upright_and_scaled(size):
    """Masks would lie beside the objects of a photograph that was held upright, or pictures stay large."""
    data, (width, height) = jpeg(*size, orientation=6), size
    row = labels_of("a", height=width, width=height)  # as labelled: turned
    found = Image.open(io.BytesIO(picture_of(row, ImageRecord(key="a", uri="", data=data), longest=50, limits=LIMITS)))
    assert found.size == (30, 50)
    assert found.getpixel((15, 5))[0] > 200  # the left half is on top now
    assert found.getpixel((15, 45))[0] < 60
    assert not found.getexif()


def test_an_image_that_is_another_one_than_was_labelled_is_not_shown():
    """Masks would be drawn over a picture that they do not belong to."""
    record = ImageRecord(key="a", uri="", data=jpeg(100, 60))
    for size in ((60, 99), (100, 60), (61, 100)):
        with pytest.raises(ImageError, match="another one"):
            picture_of(labels_of("a", height=size[0], width=size[1]), record, longest=640, limits=LIMITS)
    with pytest.raises(ImageError, match="no longer"):
        picture_of(labels_of("a", height=60, width=100), None, longest=640, limits=LIMITS)


def test_masks_are_scaled_with_their_picture():
    """Outlines would not lie where the objects are, or small objects vanish."""
    whole = np.zeros((90, 120), np.uint8)
    whole[30:60, 40:80] = 1
    dot = np.zeros_like(whole)
    dot[89, 119] = 1
    counts = tuple(mask_api.encode(np.asfortranarray(one))["counts"].decode() for one in (whole, dot))
    found = [mask_api.decode({"size": [30, 40], "counts": one}) for one in scaled_counts(counts, (90, 120), (30, 40))]
    np.testing.assert_array_equal(found[0], whole[1::3, 1::3])
    assert np.argwhere(found[1]).tolist() == [[29, 39]]
    assert scaled_counts(counts, (90, 120), (90, 120)) == counts


@pytest.mark.parametrize("to", [(30, 40), (59, 79), (7, 80), (60, 1), (1, 1)])
def test_a_scaled_mask_has_the_pixels_of_the_whole_one(to):
    """Masks would be shifted or torn at some sizes."""
    rng = np.random.default_rng(5)
    for density in (0.03, 0.5, 0.97):
        whole = np.asfortranarray(rng.random((60, 80)) < density, np.uint8)
        (found,) = scaled_counts((mask_api.encode(whole)["counts"].decode(),), (60, 80), to)
        rows, columns = (((np.arange(b) + 0.5) * a / b).astype(int) for a, b in zip((60, 80), to, strict=True))
        expected = np.asfortranarray(whole[np.ix_(rows, columns)])
        if expected.any():
            assert found == mask_api.encode(expected)["counts"].decode()
        else:
            assert mask_api.area({"size": [*to], "counts": found}) == 1


def test_a_mask_that_cannot_be_decoded_is_shown_as_an_empty_one():
    """pycocotools reads past the end of a damaged mask, and takes the process with it."""
    for to in ((10, 10), (20, 20)):
        found = scaled_counts(("0" * 99, "\x00", "P2"), (20, 20), to)
        assert [int(mask_api.area({"size": [*to], "counts": one})) for one in found] == [0, 0, 0]


# --- Comparing


def boxes(*found: tuple[int, int, int, int, int], scores: list[float] | None = None) -> Instances:
    """Instances (category, x, y, w, h) in an image of 20 x 20."""
    masks = np.zeros((20, 20, len(found)), np.uint8, order="F")
    for place, (_, x, y, w, h) in enumerate(found):
        masks[y : y + h, x : x + w, place] = 1
    rles = mask_api.encode(masks)
    return Instances(
        category_ids=np.array([one[0] for one in found], np.int32),
        scores=np.array(scores or np.linspace(0.9, 0.5, len(found)), np.float32),
        boxes=np.array([one[1:] for one in found], np.float32).reshape(-1, 4),
        areas=np.array([mask_api.area(rle) for rle in rles], np.int64),
        counts=tuple(rle["counts"].decode() for rle in rles),
    )


def objects(*found: tuple[int, int, int, int, int]) -> Objects:
    some = boxes(*found)
    return Objects(category_ids=some.category_ids, counts=some.counts)


def test_masks_take_objects_by_score_and_class():
    """The IoU with the truth would be that with a neighbour, or with an object of another class."""
    found = boxes((1, 0, 0, 10, 10), (1, 0, 0, 10, 5), (2, 12, 12, 4, 4), (1, 15, 0, 4, 4), (1, 0, 12, 5, 5))
    truth, crowds = objects((1, 0, 0, 10, 10), (1, 12, 12, 4, 4)), objects((1, 14, 0, 6, 6))
    compared = compare(found, truth, crowds, (20, 20))
    np.testing.assert_allclose(compared.ious, [1, 0, 0, np.nan, 0])
    assert compared.partners.tolist() == [0, -1]


def test_change_is_from_none_to_all():
    """Images in which people redrew everything would not come before those in which they touched one mask."""
    old = labels_of("a", boxes((1, 0, 0, 10, 10), (2, 12, 12, 4, 4)), height=20, width=20)
    half = replace(old, instances=boxes((1, 0, 0, 10, 10), (1, 12, 12, 4, 4)))
    assert change(old, old) == 0
    assert change(old, half) == pytest.approx(0.5)
    assert change(old, replace(old, instances=NO_INSTANCES)) == 1
    assert change(replace(old, instances=NO_INSTANCES), replace(old, instances=NO_INSTANCES)) == 0


def coco_of(rows: list[ImageLabels], categories: list[tuple[int, str]]) -> dict:
    annotations = [
        {
            "id": 1,
            "image_id": number,
            "category_id": int(category),
            "segmentation": {"size": [row.height, row.width], "counts": counts},
            "iscrowd": 0,
        }
        for number, row in enumerate(rows, start=1)
        for category, counts in zip(row.instances.category_ids, row.instances.counts, strict=True)
    ]
    images = [
        {"id": number, "file_name": Path(row.key).name, "height": row.height, "width": row.width}
        for number, row in enumerate(rows, start=1)
    ]
    return {
        "images": images,
        "annotations": [{**one, "id": place} for place, one in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


def test_the_truth_is_compared_by_key_and_class_name(store, tmp_path):
    """--truth would compare with another image, or with a class of the same number and another name."""
    uri = str(tmp_path / "run")
    small_runs.make_run(store, uri, tmp_path / "in", shards=1)
    rows = [row for row in runs.read_rows(store, uri) if row.status != "quarantined"]
    file = tmp_path / "truth.json"
    # The run says bright: 1, dark: 7; the truth has the same masks under other numbers.
    swapped = [
        replace(row, instances=replace(row.instances, category_ids=8 - row.instances.category_ids)) for row in rows[1:]
    ]
    file.write_text(json.dumps(coco_of(swapped, [(7, "bright"), (1, "dark")])))
    written = gallery(runs.opened(store, uri), str(tmp_path / "out"), truth=str(file))
    page = Page(store, str(tmp_path / "out"))
    first = len(rows[0].instances)
    assert written.truth == len(rows) - 1
    assert page.all("truth") == [None, *(len(row.instances) for row in rows[1:]), None]
    assert np.isnan(page.column("true_iou")[:first]).all()
    assert (page.column("true_iou")[first:] == 1).all()
    file.write_text(json.dumps(coco_of(rows, [(1, "bright"), (7, "dog")])))
    gallery(runs.opened(store, uri), str(tmp_path / "out"), truth=str(file))
    page = Page(store, str(tmp_path / "out"))
    dark = np.concatenate([row.instances.category_ids for row in rows]) == 7
    assert np.isnan(page.column("true_iou")[dark]).all()  # nobody has looked for them
    assert (page.column("true_iou")[~dark] == 1).all()
    file.write_text(json.dumps(coco_of(rows, [(1, "cat"), (7, "dog")])))
    with pytest.raises(UserError, match="no class of the run; it has 'cat', 'dog'"):
        gallery(runs.opened(store, uri), str(tmp_path / "out"), truth=str(file))
    file.write_text("[1")
    with pytest.raises(UserError, match=r"--truth.*is no JSON"):
        gallery(runs.opened(store, uri), str(tmp_path / "out"), truth=str(file))
