"""Judges a run from outside: what lies in its folder, by the documented layout, without the pipeline's own readers.

Every image of the input must have exactly one row in the Parquet files that the commits name, each file must be what
its commit says, the counts must add up, and the rows must be those of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.chaos.inputs import Drawn
from tests.chaos.nodes import REPOSITORY

#: What of an image may not depend on who labelled it, when, or how often: status, error, size, and the masks.
Row = tuple[object, ...]
_STATUSES = ("labelled", "empty", "quarantined")
_SHOWN = 5


@dataclass(slots=True, kw_only=True)
class Found:
    """What lies in a run's folder.

    faults: a sentence each. lost, doubled: images. orphans: data objects that no commit names. leftovers: hidden files
    of puts that never ended.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    orphans: int = 0
    leftovers: int = 0


def judge(run: Path, drawn: Drawn, undisturbed: Mapping[str, Row] | None) -> Found:
    """Read a finished run -> what is there, and what is wrong with it."""
    found = Found()
    seen: Counter[str] = Counter()
    ids: Counter[int] = Counter()
    named: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    commits = sorted((run / "commits").glob("*/*.json"))
    if len(commits) != drawn.shards:
        found.faults.append(f"{len(commits)} commits for {drawn.shards} shards")
    for path in commits:
        commit = json.loads(path.read_bytes())
        named.update(output["path"] for output in commit["outputs"].values())
        if f"{commit['shard_id'][:2]}/{commit['shard_id']}.json" != f"{path.parent.name}/{path.name}":
            found.faults.append(f"{path} is of shard {commit['shard_id']}")
        files = {kind: run / output["path"] for kind, output in commit["outputs"].items()}
        wrong = dict(_changed(run, commit))
        found.faults += wrong.values()
        if "parquet" in wrong:
            continue
        rows = [*_rows(files["parquet"])]
        found.faults += _miscounted(path.name, commit, [row for _, _, row in rows])
        if "coco" not in wrong:
            found.faults += _apart(files["coco"], [(key, id, row) for key, id, row in rows if row[0] != "quarantined"])
        sums.update({name: commit[name] for name in ("images", *_STATUSES)})
        for key, id, row in rows:
            seen[key] += 1
            ids[id] += 1
            found.rows[key] = row
    lost, doubled = sorted(drawn.images.keys() - seen), sorted(key for key, times in seen.items() if times > 1)
    found.lost, found.doubled = len(lost), len(doubled)
    found.faults += _listed("lost", lost) + _listed("doubled", doubled)
    found.faults += _listed("never drawn", sorted(seen.keys() - drawn.images.keys()))
    found.faults += _listed("one id for several images", sorted(id for id, times in ids.items() if times > 1))
    found.faults += _listed("named by several commits", sorted(name for name, times in named.items() if times > 1))
    if sums["images"] != len(drawn.images) or sums["images"] != sum(sums[status] for status in _STATUSES):
        found.faults.append(f"the commits' sums are {dict(sums)} for {len(drawn.images)} images")
    found.faults += _listed("not quarantined as it should be", _misjudged(found.rows, drawn))
    if undisturbed is not None:
        other = [key for key in drawn.images if key in found.rows and found.rows[key] != undisturbed[key]]
        found.faults += _listed("not as in the undisturbed run", sorted(other))
    for folder in ("labels", "coco"):
        for path in (run / folder).iterdir():
            found.leftovers += path.name.startswith(".")
            found.orphans += not path.name.startswith(".") and f"{folder}/{path.name}" not in named
    return found


def local_commits(run: Path) -> dict[str, str]:
    """A checksum of each commit by its path, which must never change."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in run.glob("commits/*/*.json")}


def told(run: str, drawn: Drawn, environment: Mapping[str, str], folder: Path) -> list[str]:
    """What is wrong with what verify, status and export, which writes into `folder`, say of a finished run."""
    images, good = len(drawn.images), {key for key, reason in drawn.images.items() if reason is None}
    out = folder / "export.json"
    faults = []
    for words in (("verify", run), ("status", run, "--json"), ("export", run, "--format", "coco", "--out", str(out))):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words], cwd=REPOSITORY, env=dict(environment),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            faults.append(f"patchlabel {words[0]} exits with {done.returncode}: {done.stdout}{done.stderr}")
        elif words[0] == "status":
            status = json.loads(done.stdout)
            if (status["done"], status["failed"], status["images"]) != (drawn.shards, 0, images):
                faults.append(f"patchlabel status says {done.stdout}")
        elif words[0] == "export":
            keys = Counter(image["file_name"] for image in json.loads(out.read_bytes())["images"])
            if keys != Counter(good):
                faults.append(f"patchlabel export has {keys.total()} images for {len(good)} good ones")
    return faults


def _changed(run: Path, commit: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """By format, what of a commit's files is not as it says."""
    for kind in ("parquet", "coco"):
        output = commit["outputs"].get(kind)
        if output is None:
            yield kind, f"the commit of {commit['shard_id']} names no {kind}"
            continue
        path = run / output["path"]
        data = path.read_bytes() if path.is_file() else None
        if data is None:
            yield kind, f"{output['path']} is committed, but not there"
        elif len(data) != output["bytes"] or hashlib.sha256(data).hexdigest() != output["sha256"]:
            yield kind, f"{output['path']} is not what was committed"


def _rows(file: Path) -> Iterator[tuple[str, int, Row]]:
    """Key, image id, and what may not differ, of each row of a Parquet file."""
    for row in pq.read_table(file).to_pylist():
        masks = tuple(
            (one["category_id"], one["score"], tuple(one["bbox"]), one["area"], one["segmentation"]["counts"])
            for one in row["instances"]
        )
        yield row["key"], row["image_id"], (row["status"], row["error"], row["height"], row["width"], masks)


def _miscounted(name: str, commit: Mapping[str, Any], rows: list[Row]) -> Iterator[str]:
    """Where a commit's counts are not those of its rows, or do not add up."""
    there = Counter(str(row[0]) for row in rows)
    reasons = Counter(str(row[1]).partition(":")[0] for row in rows if row[1] is not None)
    masks = sum(len(row[4]) for row in rows)  # type: ignore[arg-type]
    counts = {status: commit[status] for status in _STATUSES}
    if commit["images"] != len(rows) or commit["images"] != sum(counts.values()):
        yield f"commit {name} says {commit['images']} images, and has {len(rows)} rows"
    if counts != {status: there[status] for status in _STATUSES}:
        yield f"commit {name} says {counts}, and its rows say {dict(there)}"
    if commit["reasons"] != dict(reasons) or commit["instances"] != masks:
        yield f"commit {name} says {commit['reasons']}, {commit['instances']} masks; its rows {dict(reasons)}, {masks}"


def _apart(file: Path, rows: list[tuple[str, int, Row]]) -> Iterator[str]:
    """Where a COCO file does not say the same as the rows."""
    data = json.loads(file.read_bytes())
    if {(image["file_name"], image["id"]) for image in data["images"]} != {(key, id) for key, id, _ in rows}:
        yield f"{file.name} has other images than its Parquet"
    masks = Counter((one["image_id"], one["segmentation"]["counts"]) for one in data["annotations"])
    if masks != Counter((id, mask[-1]) for _, id, row in rows for mask in row[4]):  # type: ignore[attr-defined]
        yield f"{file.name} has other masks than its Parquet"


def _misjudged(rows: Mapping[str, Row], drawn: Drawn) -> list[str]:
    """The images that are quarantined though they are good, or are not, or for another reason."""
    reasons = {key: row[1] and str(row[1]).partition(":")[0] for key, row in rows.items()}
    return sorted(key for key, reason in drawn.images.items() if key in reasons and reasons[key] != reason)


def _listed(what: str, items: list[Any]) -> list[str]:
    if not items:
        return []
    return [f"{len(items)} {what}: {', '.join(map(str, items[:_SHOWN]))}{', ...' if len(items) > _SHOWN else ''}"]
