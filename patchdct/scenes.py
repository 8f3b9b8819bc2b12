"""Drawn scenes with exact instance masks: the data of the demo, of its model and of the tests.

A scene is a pure function of its seed. Textured shapes of six categories (with holes, thin parts, points and curved
edges) lie over each other on a textured background. Each shape is drawn four times larger and averaged down, so that
its edge is as soft as a photographed one, and its mask is the pixels that it covers by at least a half.

    python -m patchdct.scenes --out DIR --images 200 --seed 1 --tars 50
"""

from __future__ import annotations

import argparse
import json
import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

CATEGORIES: tuple[tuple[int, str], ...] = (
    (1, "pebble"),
    (2, "ring"),
    (3, "star"),
    (4, "leaf"),
    (5, "gear"),
    (6, "tube"),
)

SUPERSAMPLING = 4
#: Lengths below are for a scene of this side, and scale with the side.
REFERENCE_SIZE, LEAST_SIZE = 256, 64
#: The longer side of a shape's box in pixels, from the least (more for thin shapes) to the greatest.
LEAST_EXTENT = {"pebble": 26.0, "ring": 30.0, "star": 32.0, "leaf": 44.0, "gear": 36.0, "tube": 60.0}
GREATEST_EXTENT = 130.0
#: A shape shows at least this many pixels, and this share of its full area, counted with what lies outside the image.
LEAST_AREA, LEAST_SHARE = 200.0, 0.5
#: A new shape hides at most this share of the full area of one that is already there.
GREATEST_OVERLAP = 0.3

Floats = npt.NDArray[np.float32]
Contours = list[npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An image and its instances, the lowest one first.

    image: uint8 [H, W, 3] RGB. masks: bool [N, H, W], the visible pixels, disjoint. category_ids: N ids of CATEGORIES.
    """

    image: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    category_ids: tuple[int, ...]


def draw_scene(seed: int, size: int = REFERENCE_SIZE) -> Scene:
    """Draw the scene of `seed`: `size` by `size` pixels with 3 to 10 instances. The same seed gives the same bytes."""
    _check_size(size)
    rng = np.random.default_rng(seed)
    scale = size / REFERENCE_SIZE
    ground = rng.uniform(60, 200) + 0.6 * rng.uniform(-70, 70, 3)
    image = _texture(rng, size, size, ground, scale)
    owner = np.full((size, size), -1, np.int16)
    full_areas: list[float] = []
    category_ids: list[int] = []
    wanted = int(rng.integers(3, 11))
    for _ in range(12 * wanted):
        if len(category_ids) == wanted:
            break
        category_id, name = CATEGORIES[rng.integers(len(CATEGORIES))]
        coverage, top, left = _place(rng, _SHAPES[name](rng), LEAST_EXTENT[name] * scale, GREATEST_EXTENT * scale, size)
        full = float(coverage.sum())
        coverage, rows, columns = _crop(coverage, top, left, size)
        covered = coverage >= 0.5
        if not _fits(owner[rows, columns][covered], full, full_areas, owner, LEAST_AREA * scale**2):
            continue
        colour = _contrasting(rng, ground)
        paint = _texture(rng, coverage.shape[0], coverage.shape[1], colour, scale * 0.5)
        below = image[rows, columns]
        below += coverage[..., None] * (paint - below)
        owner[rows, columns][covered] = len(category_ids)
        full_areas.append(full)
        category_ids.append(category_id)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.7)), np.float32)
    image += rng.uniform(1.5, 5.0) * rng.standard_normal(image.shape, np.float32)
    masks = owner[None] == np.arange(len(category_ids), dtype=np.int16)[:, None, None]
    return Scene(image=np.clip(np.rint(image), 0, 255).astype(np.uint8), masks=masks, category_ids=tuple(category_ids))


def _check_size(size: int) -> None:
    if size < LEAST_SIZE:
        raise ValueError(f"A scene of {size} pixels was asked for; its side must be at least {LEAST_SIZE} pixels.")


def _fits(
    hidden: npt.NDArray[np.int16], full: float, full_areas: Sequence[float], owner: npt.NDArray[np.int16], least: float
) -> bool:
    """Whether a new shape over the pixels whose owners are `hidden` leaves it and all others visible enough."""
    if len(hidden) < max(least, LEAST_SHARE * full):
        return False
    count = len(full_areas)
    lost = np.bincount(hidden[hidden >= 0], minlength=count)
    left = np.bincount(owner[owner >= 0], minlength=count) - lost
    areas = np.asarray(full_areas)
    enough = (left >= np.maximum(least, LEAST_SHARE * areas)) & (lost <= GREATEST_OVERLAP * areas)
    return bool(np.all(enough | (lost == 0)))


def _place(
    rng: np.random.Generator, contours: Contours, least: float, greatest: float, size: int
) -> tuple[Floats, int, int]:
    """Turn, stretch, scale and move a shape.

    Returns its coverage, float32 [h, w] in 0..1, and the top and left of that box in the image, which may lie outside.
    """
    turn, aspect = rng.uniform(0, 2 * math.pi), rng.uniform(0.7, 1.0)
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = np.array([[cos, sin], [-sin, cos]]) * [[1.0], [aspect]]
    turned = [points @ matrix for points in contours]
    extent = np.ptp(np.concatenate(turned), axis=0).max()
    scale = (least + (greatest - least) * rng.random() ** 1.5) / extent
    centre = rng.uniform(0.04, 0.96, 2) * size
    placed = [points * scale + centre for points in turned]
    low = np.floor(np.concatenate(placed).min(axis=0)).astype(int) - 1
    high = np.ceil(np.concatenate(placed).max(axis=0)).astype(int) + 2
    width, height = (int(side) for side in high - low)
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    shift = 4
    fine = [np.rint(((points - low) * SUPERSAMPLING - 0.5) * (1 << shift)).astype(np.int32) for points in placed]
    cv2.fillPoly(canvas, fine, 255, shift=shift)
    coverage = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.divide(coverage, 255, dtype=np.float32), int(low[1]), int(low[0])


def _crop(coverage: Floats, top: int, left: int, size: int) -> tuple[Floats, slice, slice]:
    """The part of `coverage` inside the image, and the image's rows and columns under it."""
    height, width = coverage.shape
    rows, columns = (
        slice(max(start, 0), max(min(start + length, size), 0)) for start, length in ((top, height), (left, width))
    )
    return coverage[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left], rows, columns


def _contrasting(rng: np.random.Generator, ground: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A colour (RGB, 0..255) that differs from the ground's: mostly by much, now and then by little."""
    least = 35.0 if rng.random() < 0.15 else 75.0
    while True:
        colour = rng.uniform(25, 235, 3)
        if float(np.linalg.norm(colour - ground)) >= least:
            return colour


def _texture(
    rng: np.random.Generator, height: int, width: int, colour: npt.NDArray[np.float64], scale: float
) -> Floats:
    """A surface float32 [height, width, 3] of about the given mean colour: noise, a gradient and often stripes or dots.

    `scale` sets how coarse the patterns are.
    """
    noise: Floats = np.zeros((height, width), np.float32)
    for cell, strength in ((48.0, 9.0), (16.0, 7.0), (5.0, 5.0)):
        grid = rng.standard_normal((round(height / (cell * scale)) + 2, round(width / (cell * scale)) + 2), np.float32)
        noise += np.float32(strength) * np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC))
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(5, 28)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    light = noise + np.float32(strength) * (math.cos(angle) * x + math.sin(angle) * y)
    surface: Floats = np.asarray(colour.astype(np.float32) + light[..., None], np.float32)
    pattern = rng.random()
    if pattern < 0.6:
        angle, period = rng.uniform(0, math.pi), rng.uniform(9, 30) * scale
        frequency = np.float32(2 * math.pi / period)
        u = frequency * (math.cos(angle) * np.arange(width, dtype=np.float32)[None])
        v = frequency * (math.sin(angle) * np.arange(height, dtype=np.float32)[:, None])
        wave = np.sin(u + v) if pattern < 0.35 else np.sin(u + v) * np.sin(u * 0.9 - v * 1.1 + 1)
        tint = rng.uniform(-26, 26, 3).astype(np.float32)
        surface += np.clip(3 * wave, -1, 1)[..., None] * tint
    return surface


def _polar(angles: npt.NDArray[np.float64], radii: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _circle(radius: float = 1.0) -> npt.NDArray[np.float64]:
    return _polar(np.linspace(0, 2 * math.pi, 96, endpoint=False), radius)


def _band(
    length: npt.NDArray[np.float64], heading: npt.NDArray[np.float64], half_width: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The outline of a band along a curve, given by heading (radians) and half width at each arc length."""
    step = np.diff(length, prepend=length[0])
    spine = np.cumsum(_polar(heading, step), axis=0)
    side = _polar(heading + math.pi / 2, half_width)
    return np.concatenate([spine + side, (spine - side)[::-1]])


def _pebble(rng: np.random.Generator) -> Contours:
    angles = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    waves = sum(rng.uniform(0.02, 0.16) / k * np.cos(k * angles + rng.uniform(0, 7)) for k in (2, 3, 4, 5, 7))
    return [_polar(angles, 1 + waves)]


def _ring(rng: np.random.Generator) -> Contours:
    inner = rng.uniform(0.48, 0.7)
    return [_circle(), _circle(inner) + rng.uniform(-0.06, 0.06, 2)]


def _star(rng: np.random.Generator) -> Contours:
    points = int(rng.integers(5, 7))
    radii = np.tile([1.0, rng.uniform(0.4, 0.5)], points)
    return [_polar(np.arange(2 * points) * math.pi / points, radii * rng.uniform(0.94, 1.06, 2 * points))]


def _leaf(rng: np.random.Generator) -> Contours:
    length = np.linspace(-0.3, 1, 80)
    blade = rng.uniform(0.2, 0.27) * np.sin(math.pi * np.clip(length, 0, 1) ** 0.8)
    heading = rng.uniform(0.5, 1.3) * rng.choice([-1, 1]) * length
    return [_band(length, heading, np.maximum(blade, np.where(length < 0.2, 0.03, 0.0)))]


def _gear(rng: np.random.Generator) -> Contours:
    teeth = int(rng.integers(8, 12))
    root = rng.uniform(0.7, 0.78)
    pitch = 2 * math.pi / teeth
    angles = (np.arange(teeth)[:, None] + np.array([-0.30, -0.18, 0.18, 0.30])).ravel() * pitch
    return [_polar(angles, np.tile([root, 1.0, 1.0, root], teeth)), _circle(rng.uniform(0.22, 0.36))]


def _tube(rng: np.random.Generator) -> Contours:
    length = np.linspace(0, 1, 80)
    turn = rng.uniform(2.2, 3.8)
    bent_once = rng.random() < 0.6
    heading = turn * (length if bent_once else np.abs(length - 0.5) * 1.3)
    half_width = rng.uniform(0.05, 0.075)
    ends = np.clip(np.minimum(length, 1 - length) / half_width, 0, 1)
    return [_band(length, heading, half_width * np.sqrt(1 - (1 - ends) ** 2))]


_SHAPES: dict[str, Callable[[np.random.Generator], Contours]] = {
    "pebble": _pebble,
    "ring": _ring,
    "star": _star,
    "leaf": _leaf,
    "gear": _gear,
    "tube": _tube,
}


def _scenes(images: int, seed: int, sizes: Sequence[int]) -> Iterator[Scene]:
    for index in range(images):
        # Seeds of their own for every (seed, index): sets of different seeds share no scene.
        state = np.random.SeedSequence((seed, index)).generate_state(2, np.uint64)
        yield draw_scene(int(state[0]), sizes[int(state[1] % np.uint64(len(sizes)))])


def write_scenes(out: Path, *, images: int, seed: int, size: int | Sequence[int] = REFERENCE_SIZE) -> Path:
    """Write a COCO data set: `out/images/NNNNNN.jpg` and `out/annotations.json`, whose path is returned.

    Segmentations are compressed RLE strings. With several sizes each scene takes one of them.
    """
    sizes = (size,) if isinstance(size, int) else tuple(size)
    for side in sizes:
        _check_size(side)
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    image_rows: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, scene in enumerate(_scenes(images, seed, sizes), start=1):
        name = f"{number:06d}.jpg"
        _, jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        (folder / name).write_bytes(jpeg.tobytes())
        height, width = scene.image.shape[:2]
        image_rows.append({"id": number, "file_name": name, "height": height, "width": width})
        for category_id, mask in zip(scene.category_ids, scene.masks, strict=True):
            rle = mask_api.encode(np.asfortranarray(mask.view(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_id,
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
                    "area": int(mask.sum()),
                    "bbox": mask_api.toBbox(rle).tolist(),
                    "iscrowd": 0,
                }
            )
    truth = {
        "info": {"description": f"drawn scenes, seed {seed}"},
        "images": image_rows,
        "annotations": annotations,
        "categories": [{"id": category_id, "name": name} for category_id, name in CATEGORIES],
    }
    path = out / "annotations.json"
    path.write_text(json.dumps(truth), encoding="utf-8")
    return path


def pack_tars(images_dir: Path, out_dir: Path, per_shard: int) -> list[Path]:
    """Pack the JPEG files of a folder, in order of their names, into `out_dir/scenes-00000.tar` and so on.

    Members carry the bare file names. The same images give the same bytes, whenever and wherever they are packed.
    """
    if per_shard < 1:
        raise ValueError(f"A shard cannot hold {per_shard} images; it must hold at least 1.")
    out_dir.mkdir(parents=True, exist_ok=True)
    files = sorted(images_dir.glob("*.jpg"))
    shards: list[Path] = []
    for start in range(0, len(files), per_shard):
        shard = out_dir / f"scenes-{len(shards):05d}.tar"
        with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
            for file in files[start : start + per_shard]:
                member = tarfile.TarInfo(file.name)
                member.size = file.stat().st_size
                with file.open("rb") as data:
                    tar.addfile(member, data)
        shards.append(shard)
    return shards


def answer(out: Path, queue: Path) -> Path:
    """Write `out/answers.json`: the truth of the scenes in `out` that a review queue names, as a person would give it.

    Args:
        out: where `write_scenes` has written.
        queue: JSON with `images`, each with a `key`, as `patchlabel review` writes it.

    Returns:
        The path of the answers, a COCO JSON.

    Raises:
        ValueError: one of the files is not there, or holds something else.
    """
    try:
        truth = json.loads((out / "annotations.json").read_text(encoding="utf-8"))
        wanted = {image["key"] for image in json.loads(queue.read_text(encoding="utf-8"))["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--answer {queue}: no queue of scenes in {out}: {error}") from error
    images = [row for row in truth["images"] if row["file_name"] in wanted]
    ids = {row["id"] for row in images}
    annotations = [row for row in truth["annotations"] if row["image_id"] in ids]
    path = out / "answers.json"
    path.write_text(json.dumps({**truth, "images": images, "annotations": annotations}), encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Write scenes as the command line says: images and truth, and with --tars shards under `DIR/shards`."""
    parser = argparse.ArgumentParser(prog="python -m patchdct.scenes", description="Draw scenes with exact masks.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=int, help="draw so many")
    what.add_argument(
        "--answer", type=Path, metavar="QUEUE", help="answer a queue of `patchlabel review` by the truth that is in DIR"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, nargs="+", default=[REFERENCE_SIZE], help="sides to choose from, in pixels")
    parser.add_argument("--tars", type=int, metavar="PER_SHARD", help="also pack tars of so many images")
    options = parser.parse_args(argv)
    if options.tars is not None and options.tars < 1:
        parser.error(f"--tars is {options.tars}; a shard must hold at least 1 image.")
    try:
        if options.answer is not None:
            print(answer(options.out, options.answer))
            return 0
        write_scenes(options.out, images=options.images, seed=options.seed, size=options.size)
    except ValueError as error:
        parser.error(str(error))
    if options.tars is not None:
        pack_tars(options.out / "images", options.out / "shards", options.tars)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
