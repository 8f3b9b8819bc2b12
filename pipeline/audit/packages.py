"""The sample as a folder for people: tasks for Label Studio, and a page with pictures that makes a table of answers."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from PIL import Image

from pipeline import images, masks, originals, polygons, scratch
from pipeline.audit import judging
from pipeline.audit.plans import FILE, Plan, document
from pipeline.audit.sampling import Drawn, Scene
from pipeline.audit.verdicts import COLUMNS, MISSED, VERDICTS
from pipeline.errors import ImageError
from pipeline.exports import labelstudio
from pipeline.exports.common import Item, Request, Tally, folder
from pipeline.records import ImageLabels, Pixels
from pipeline.review.locating import file_name
from pipeline.runs import Labels

_SIDE = 520  # pixels of the longer side of a picture's half
_AROUND = 0.6  # of the box on each side of it
_LEAST = 48  # pixels of the image at least
_QUALITY = 88
#: Of images that were labelled, and so were within the limits of their run.
_MOST_PIXELS = 1 << 40
_LINE, _OTHER, _WHITE = (255, 60, 60), (70, 220, 255), (255, 255, 255)
#: From which IoU on a mask is named beside another one, of which it may be a duplicate.
_OVERLAP = 0.3


def write(labels: Labels, plan: Plan, out: str) -> None:
    """Write the package, and the plan last.

    `tasks-*.json` and `label_config.xml` with `images/*` for Label Studio: a task a mask. `judge.html` with
    `pictures/*` for any browser, which makes an `answers.csv`, and the template of that for a spreadsheet.

    Raises:
        UserError: `out` is no place for it.
        ShardError, StoreError: labels or images cannot be read, or the storage failed.
    """
    by_image: defaultdict[tuple[str, str], list[tuple[int, Drawn]]] = defaultdict(list)
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for rank, one in enumerate(plan.masks, start=1):
        by_image[one.shard_id, one.key].append((rank, one))
        keys[one.shard_id].add(one.key)
    scenes = {(one.shard_id, one.key): one for one in plan.scenes}
    for shard_id, key in scenes:
        keys[shard_id].add(key)
    request = Request(labels=labels.only(keys), out=out, images=True)
    names = {one.id: one.name for one in plan.categories}
    found: dict[int, dict[str, str]] = {}
    asked: dict[str, dict[str, str]] = {}
    with scratch.folder() as local, folder(request) as files:
        for item in Tally().sized(request):
            of_image = by_image[item.shard_id, item.row.key]
            image = item.image
            assert image is not None
            if (scene := scenes.get((item.shard_id, item.row.key))) is not None:
                asked[scene.name] = _asked(scene)
                if (whole := _decoded(labels, item)) is not None:
                    files.put(asked[scene.name]["picture"], overview(whole, item.row))
            if not of_image:
                continue
            item = replace(item, name=file_name(of_image[0][0], item.shard_id, item.row.image_id, item.name))
            files.put(f"images/{item.name}", image.data)
            pixels = _decoded(labels, item)
            for rank, one in of_image:
                found[rank] = _answer(item.row, one, names[one.category_id], rank)
                task = _task(item, one, names[one.category_id], request, rank)
                (local / f"{rank}.json").write_text(json.dumps(task, allow_nan=False))
                if pixels is not None:
                    files.put(f"pictures/{_picture(rank, one)}", picture(pixels, item.row, one.index))
        with labelstudio.task_files(files, local) as parts:
            for rank in range(1, len(plan.masks) + 1):
                parts.write((local / f"{rank}.json").read_text())
        files.put("label_config.xml", _config(labels).encode())
        rows = [found[rank] for rank in sorted(found)] + [asked[one.name] for one in plan.scenes]
        files.put("answers.csv", _table(rows).encode())
        files.put(
            "judge.html", judging.page(plan.run_id, plan.created, VERDICTS, rows).encode("utf-8", "backslashreplace")
        )
        files.put_last(FILE, document(plan))


def picture(pixels: Pixels, row: ImageLabels, index: int) -> bytes:
    """A JPEG of what is around a mask: as it is, and beside it with its outline and, thin, those of others."""
    x, y, w, h = row.instances.boxes[index].tolist()
    room = max(_AROUND * max(w, h), (_LEAST - max(w, h)) / 2, 0)
    left, top = max(0, int(x - room)), max(0, int(y - room))
    right, bottom = min(row.width, int(x + w + room) + 1), min(row.height, int(y + h + room) + 1)
    scale = _SIDE / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    plain = cv2.resize(np.ascontiguousarray(pixels[top:bottom, left:right]), size, interpolation=how)
    outlined = plain.copy()

    def draw(mask: str, *pens: tuple[tuple[int, int, int], int]) -> None:
        rings = polygons.trace(mask, row.height, row.width).rings
        lines = [((ring - (left, top)) * scale).round().astype(np.int32) for ring in rings]
        for colour, width in pens:
            cv2.polylines(outlined, lines, True, colour, width, cv2.LINE_AA)

    for other in (*row.instances.counts[:index], *row.instances.counts[index + 1 :]):
        draw(other, (_OTHER, 1))
    draw(row.instances.counts[index], (_WHITE, 4), (_LINE, 2))
    gap = np.full((plain.shape[0], 8, 3), 255, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([plain, gap, outlined], axis=1)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def overview(pixels: Pixels, row: ImageLabels) -> bytes:
    """A JPEG of an image with the outlines of all its masks."""
    scale = 2 * _SIDE / max(row.height, row.width)
    size = max(1, round(row.width * scale)), max(1, round(row.height * scale))
    picture = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for counts in row.instances.counts:
        rings = polygons.trace(counts, row.height, row.width).rings
        lines = [(ring * scale).round().astype(np.int32) for ring in rings]
        for colour, width in ((_WHITE, 4), (_LINE, 2)):
            cv2.polylines(picture, lines, True, colour, width, cv2.LINE_AA)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _asked(one: Scene) -> dict[str, str]:
    """The line of an image in the table of answers: how many objects have no outline."""
    values = (one.name, "", "", "", one.key, MISSED, f"pictures/{one.name}.jpg")
    return dict(zip(COLUMNS, values, strict=True))


def _decoded(labels: Labels, item: Item) -> Pixels | None:
    """The pixels of an image; None where there is no picture to be had, which Label Studio may manage."""
    assert item.image is not None
    options = originals.read_options(labels.manifest, labels.uri)
    try:
        pixels = images.decode(item.image.data, max_bytes=options.max_image_bytes, max_pixels=_MOST_PIXELS)
    except ImageError:
        return None
    return pixels if pixels.shape[:2] == (item.row.height, item.row.width) else None


def _task(item: Item, one: Drawn, label: str, request: Request, rank: int) -> dict[str, Any]:
    """A task with this mask alone."""
    alone = np.arange(len(item.row.instances)) == one.index
    task = labelstudio.task(replace(item, row=replace(item.row, instances=item.row.instances.where(alone))), request)
    task["predictions"][0]["result"][0]["id"] = one.name
    beside = _beside(item.row, one.index)
    question = f"Is this a {label}, and is the mask all of it and nothing else?{f' {beside}.' if beside else ''}"
    task["data"] |= {"mask": one.name, "rank": rank, "question": question}
    return task


def _beside(row: ImageLabels, index: int) -> str:
    """What there is to know of the mask that overlaps most with one, as it may be a duplicate; "" if none does."""
    others = [place for place in range(len(row.instances)) if place != index]
    counts = row.instances.counts
    overlaps = masks.iou([counts[index]], [counts[place] for place in others], row.height, row.width)[0]
    if not len(overlaps) or overlaps.max() < _OVERLAP:
        return ""
    score = row.instances.scores[others[int(overlaps.argmax())]]
    return f"Another mask, of score {score:.2f}, has an IoU of {overlaps.max():.2f} with it"


def _config(labels: Labels) -> str:
    """Label Studio's configuration: the mask, which may be corrected, and the verdict, which must be given."""
    choices = "".join(
        f"    <Choice value={quoteattr(name)} hint={quoteattr(words)}/>\n" for name, words in VERDICTS.items()
    )
    asked = (
        '  <Choices name="verdict" toName="image" choice="single" required="true" showInline="true">\n'
        f"{choices}  </Choices>\n"
    )
    header = '  <Header name="header" value="$question" size="4"/>\n'
    return labelstudio.label_config(labels.categories, as_polygons=False, above=header + asked)


def _answer(row: ImageLabels, one: Drawn, label: str, rank: int) -> dict[str, str]:
    """The line of a mask in the table of answers."""
    about = one.key, _beside(row, one.index), f"pictures/{_picture(rank, one)}"
    return dict(zip(COLUMNS, (one.name, "", label, f"{one.score:.3f}", *about), strict=True))


def _picture(rank: int, one: Drawn) -> str:
    return f"{rank:05d}-{one.name}.jpg"


def _table(rows: Sequence[dict[str, str]]) -> str:
    """The template of the answers. A spreadsheet takes no name of a class or an image for a formula."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text for name, text in row.items()}
        )
    return file.getvalue()
