"""What a round labels: drawn images, some of them bad, as tars, Parquet files, and a folder with a COCO json."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.chaos.nodes import REPOSITORY
from tests.fakes import draw, write_tar

BAD: Mapping[str, str] = {"text": "not_an_image", "cut": "truncated", "nothing": "empty"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """An input: its folders, how many shards a run must find in it, and what each image must come to.

    images: by key, the reason for which it must be quarantined, or None if it must not be. settings: what a config says
    of the labeler.
    """

    folder: Path
    shards: int
    images: Mapping[str, str | None]
    per_shard: int
    settings: Mapping[str, object]

    def input(self, root: str, *, coco: bool) -> dict[str, object]:
        """The `input` of a config, where the folder lies at `root`; `coco` names the single images by the json."""
        single = "instances.json" if coco else "images/"
        places = [name for name in ("tars/", "parquet/", single) if (self.folder / name).exists()]
        return {
            "uri": [f"{root}/{name}" for name in places],
            "images_per_shard": self.per_shard,
            **({"images": f"{root}/images/"} if coco and single in places else {}),
        }


def light(
    folder: Path, *, seed: int, tars: int = 48, parquets: int = 8, listings: int = 8, per_shard: int = 14
) -> Drawn:
    """Small images for the threshold labeler, one in nine of them bad."""
    rng = random.Random(seed)
    images: dict[str, str | None] = {}
    drawn: dict[str, bytes] = {}

    def draw_shard(prefix: str) -> dict[str, bytes]:
        files = {}
        for number in range(per_shard):
            bad = rng.choice(list(BAD)) if rng.random() < 1 / 9 else None
            data = draw(rng.randrange(1 << 30), width=96, height=64)
            key = f"{prefix}-{number:02}.png"
            files[key] = {"text": b"this is no image", "cut": data[: len(data) // 2], "nothing": b"", None: data}[bad]
            images[key] = BAD[bad] if bad else None
        drawn.update(files)
        return files

    for shard in range(tars):
        write_tar(folder / f"tars/{shard:03}.tar", draw_shard(f"tar{shard:03}"))
    (folder / "parquet").mkdir(parents=True)
    for shard in range(parquets):
        files = draw_shard(f"parquet{shard:03}")
        table = pa.table({"key": list(files), "image": list(files.values())})
        pq.write_table(table, folder / f"parquet/{shard:03}.parquet")
    (folder / "images").mkdir()
    single = [name for shard in range(listings) for name in draw_shard(f"single{shard:03}")]
    for name in single:
        (folder / "images" / name).write_bytes(drawn[name])
    rows = [{"id": number, "file_name": name, "width": 96, "height": 64} for number, name in enumerate(single, start=1)]
    (folder / "instances.json").write_text(json.dumps({"images": rows, "annotations": [], "categories": []}))
    return Drawn(
        folder=folder,
        shards=tars + parquets + math.ceil(len(single) / per_shard),
        images=images,
        per_shard=per_shard,
        settings={"name": "tests.fakes:PacedLabeler", "batch_size": 4},
    )


def real(folder: Path, *, seed: int, images: int = 48, per_shard: int = 3) -> Drawn:
    """Scenes for the demo's model."""
    options = {"out": folder, "images": images, "seed": seed, "size": 128, "tars": per_shard}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "patchdct.scenes", *words], cwd=REPOSITORY, check=True, capture_output=True)
    keys = sorted(path.name for path in (folder / "images").iterdir())
    (folder / "shards").rename(folder / "tars")
    (folder / "images").rename(folder / "scenes")
    return Drawn(
        folder=folder,
        shards=math.ceil(images / per_shard),
        images=dict.fromkeys(keys),
        per_shard=per_shard,
        settings={"weights": str(REPOSITORY / "configs/model/patchdct_demo.pth"), "batch_size": 2},
    )
