"""Label Studio: tasks with predictions, as it imports them, and the labeling configuration that they are for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline import polygons, scratch
from pipeline.exports import bitmaps
from pipeline.exports.common import Folder, Item, Request, Tally, Written, attributes, folder, for_xml
from pipeline.exports.parts import TextParts
from pipeline.records import Category
from pipeline.store import join, scheme

_TASKS = 1000  # a file, and its bytes: Label Studio takes uploads of up to 200 MB, and many predictions slowly
_BYTES = 64 << 20
_ALPHA = 255
#: How many bits say how long a run is, from which a run chooses; the longest is 65,536 values.
_SIZES = (3, 4, 8, 16)


def write(request: Request, /) -> Written:
    """`tasks-*.json`, with images `images/*`, and `label_config.xml`, the labeling configuration of a new project.

    Masks are brush strokes, which keep holes and pieces. As polygons, each piece is a region, whose holes are joined to
    its outline by bridges; the id of a region is `<image id>-<instance>-<piece>`. A region has its score, and its
    quality columns as a note. `data` has `image`, `key`, `image_id`, `shard_id` and `corrected`. The image is the
    image's own URI, or the key of one that lies in an archive. With `images` it is in storage beside the tasks, for
    local files below `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`, which is to be the exported folder. Quarantined images
    are not in it.
    """
    tally = Tally()
    with folder(request) as files, scratch.folder() as local:
        with task_files(files, local) as parts:
            for item in tally.sized(request):
                parts.write(json.dumps(task(item, request), allow_nan=False))
                if item.image is not None:
                    files.put(f"images/{item.name}", item.image.data)
        files.put_last("label_config.xml", label_config(request.labels.categories, request.polygons).encode())
        return tally.written(request, files.bytes)


def task_files(files: Folder, local: Path) -> TextParts:
    """What takes tasks as JSON and makes `tasks-*.json` of them, by way of a local folder."""
    return TextParts(
        files, local, "tasks-{}.json", head="[\n", tail="\n]\n", between=",\n", entries=_TASKS, size=_BYTES
    )


def label_config(categories: tuple[Category, ...], as_polygons: bool, *, above: str = "") -> str:
    """The labeling configuration; `above`: lines of XML above the image, which may name fields of a task."""
    kind = "PolygonLabels" if as_polygons else "BrushLabels"
    labels = "".join(f"    <Label value={quoteattr(for_xml(category.name))}/>\n" for category in categories)
    return (
        f'<View>\n{above}  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        f'  <{kind} name="label" toName="image">\n{labels}  </{kind}>\n</View>\n'
    )


def brush(runs: npt.NDArray[np.int64]) -> list[int]:
    """A mask in Label Studio's run-length coding of RGBA pixels, as the bytes of a list.

    All four channels of a pixel are 255 or 0. The bits are: 32 with the number of values; 5 with the bits of a value,
    less one; 4 times 4 with the sizes of lengths, less one; then for each run a 1, 2 bits that choose a size, the
    length less one, and the value.

    Args:
        runs: lengths of runs of pixels along the rows of the image, background first.
    """
    coded: list[int] = _packed(runs * 4, np.array(_SIZES)).tolist()
    return coded


def unbrush(data: Sequence[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels, bool [height, width], of a mask in Label Studio's coding, from anywhere; see `brush`.

    Those of which the fourth channel is half or more are the mask's.

    Raises:
        ValueError: it breaks off, or is of another number of pixels.
    """
    try:
        found = np.array(data, np.int64)
    except (ValueError, TypeError, OverflowError):
        found = np.full(1, -1)
    if found.ndim != 1 or (found < 0).any() or (found > 255).any():
        raise ValueError("its brush strokes are no list of bytes")
    bits = np.unpackbits(found.astype(np.uint8))
    alpha = np.zeros(height * width, np.uint8)
    if not _unpacked(bits, alpha):
        raise ValueError(f"its brush strokes are not those of {width} x {height} pixels")
    return alpha.reshape(height, width) > _ALPHA // 2


@njit(nogil=True, cache=True)
def _unpacked(bits: Any, alpha: Any) -> Any:
    """Every fourth value goes to `alpha`; whether all was sound."""
    if len(bits) < 53:
        return False
    number = 0
    for bit in bits[:32]:
        number = number * 2 + bit
    if number != 4 * len(alpha):
        return False
    word = 1 + bits[32] * 16 + bits[33] * 8 + bits[34] * 4 + bits[35] * 2 + bits[36]
    sizes = np.zeros(4, np.int64)
    for place in range(4):
        for bit in bits[37 + 4 * place : 41 + 4 * place]:
            sizes[place] = sizes[place] * 2 + bit
        sizes[place] += 1
    used, done = 53, 0
    while done < number:
        if used + 3 > len(bits):
            return False
        repeated = bits[used]
        size = sizes[2 * bits[used + 1] + bits[used + 2]]
        used += 3
        if used + size > len(bits):
            return False
        length = 0
        for bit in bits[used : used + size]:
            length = length * 2 + bit
        length += 1
        used += size
        if done + length > number:
            return False
        value = 0
        for place in range(done, done + length):
            if place == done or not repeated:
                if used + word > len(bits):
                    return False
                value = 0
                for bit in bits[used : used + word]:
                    value = value * 2 + bit
                used += word
            if place % 4 == 3:
                alpha[place // 4] = min(value, 255)
        done += length
    return True


@njit(nogil=True, cache=True)
def _packed(runs: Any, sizes: Any) -> Any:
    longest = 1 << sizes[-1]
    records = 0
    for length in runs:
        records += (length + longest - 1) // longest
    bits = np.zeros(53 + records * (11 + sizes[-1]) + 7, np.uint8)
    used = 0
    header = [(runs.sum(), 32), (7, 5)]
    for size in sizes:
        header.append((size - 1, 4))
    for value, number in header:
        for bit in range(number):
            bits[used + bit] = value >> (number - 1 - bit) & 1
        used += number
    for run, length in enumerate(runs):
        while length > 0:
            part = min(length, longest)
            choice = 0
            while part > 1 << sizes[choice]:
                choice += 1
            size = sizes[choice]
            bits[used] = 1
            bits[used + 1], bits[used + 2] = choice >> 1, choice & 1
            for bit in range(size):
                bits[used + 3 + bit] = (part - 1) >> (size - 1 - bit) & 1
            if run % 2:
                bits[used + 3 + size : used + 11 + size] = 1
            used += 11 + size
            length -= part
    packed = np.zeros((used + 7) // 8, np.uint8)
    for bit in range(used):
        packed[bit // 8] |= bits[bit] << (7 - bit % 8)
    return packed


def task(item: Item, request: Request) -> dict[str, Any]:
    """The task of an image, with its masks as a prediction."""
    row, manifest = item.row, request.labels.manifest
    results = list(_regions(item, request))
    prediction: dict[str, Any] = {"model_version": f"{manifest.run_id}/{manifest.fingerprint}", "result": results}
    if len(row.instances):
        prediction["score"] = round(float(row.instances.scores.mean()), 6)
    data = {
        "image": _image(item, request),
        "key": row.key,
        "image_id": row.image_id,
        "shard_id": item.shard_id,
        "corrected": row.corrected,
    }
    return {"data": data, "predictions": [prediction]}


def _image(item: Item, request: Request) -> str:
    """Where Label Studio finds the image."""
    if item.image is None:
        return item.row.key if item.packed else item.row.uri
    if scheme(request.out) in ("", "file"):
        return f"/data/local-files/?d={quote(f'images/{item.name}')}"
    return join(request.out, "images", item.name)


def _regions(item: Item, request: Request) -> Iterator[dict[str, Any]]:
    row, names = item.row, {category.id: category.name for category in request.labels.categories}
    for index, counts in enumerate(row.instances.counts):
        label = [for_xml(names[int(row.instances.category_ids[index])])]
        values = attributes(row, index, request.quality)
        notes = [f"{name} {value}" for name, value in values.items() if value is not None and name != "score"]
        region = {
            "from_name": "label",
            "to_name": "image",
            "original_width": row.width,
            "original_height": row.height,
            "image_rotation": 0,
            "score": values["score"],
            **({"meta": {"text": notes}} if notes else {}),
        }
        if request.polygons:
            for piece, ring in enumerate(polygons.outlines(counts, row.height, row.width)):
                points = (ring * (100 / np.array([row.width, row.height]))).tolist()
                value = {"points": points, "closed": True, "polygonlabels": label}
                yield {"id": f"{row.image_id}-{index}-{piece}", "type": "polygonlabels", **region, "value": value}
        else:
            runs = bitmaps.row_runs(bitmaps.crop(counts, row.height, row.width), row.height, row.width)
            value = {"format": "rle", "rle": brush(runs), "brushlabels": label}
            yield {"id": f"{row.image_id}-{index}", "type": "brushlabels", **region, "value": value}
