"""An audit: a fair sample, verdicts of people, and a certificate that says no more than it knows."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import cli, corrections, ledger, masks, runs
from pipeline.audit import certificates, page, plans, sampling, verdicts
from pipeline.audit.verdicts import Answers, Verdict
from pipeline.exports import bitmaps, labelstudio
from pipeline.records import ImageLabels
from pipeline.store import Store
from tests.pipeline.test_gallery_browser import CHROMIUM, Browser
from tests.small_runs import commit_of, make_run, rewrite


@pytest.fixture
def run(store: Store, tmp_path: Path) -> str:
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs")
    return str(tmp_path / "run")


def draw(run: str, out: Path, *options: str) -> list[dict[str, str]]:
    assert cli.main(["audit", run, "--per-class", "5", "--out", str(out), *options]) == 0
    with (out / "answers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def answer(out: Path, rows: list[dict[str, str]], said: dict[str, str]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows({**one, "verdict": said.get(one["mask"], "")} for one in rows)
    (out / "filled.csv").write_text(file.getvalue())
    return str(out / "filled.csv")


def certificate(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "certificate.json").read_text())
    return found


def test_a_sample_can_be_judged_and_certified(
    store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each figure of the certificate must be that of the answers, and the plan that of the run."""
    out = tmp_path / "out"
    rows = draw(run, out)
    size = Counter(
        int(one) for found in runs.opened(store, run).all_rows() for one in found.instances.above(0.5).category_ids
    )
    plan = json.loads((out / "audit.json").read_text())
    assert {one["category_id"]: one["size"] for one in plan["strata"]} == dict(size)
    assert f"--out {out} --answers answers.csv" in capsys.readouterr().out
    dark = [one["mask"] for one in rows if one["class"] == "dark"]
    bright = [one["mask"] for one in rows if one["class"] == "bright"]
    assert (len(dark), len(bright)) == (5, 5)
    said = {**dict.fromkeys(dark, "Correct "), **dict.fromkeys(bright[:2], "bad mask"), bright[2]: "correct"}
    file = answer(out, rows, said)
    assert cli.main(["audit", run, "--answers", file, "--out", str(out), "--target", "0.5"]) == 0
    found = certificate(out)
    classes = {one["name"]: one for one in found["classes"]}
    assert classes["dark"]["precision"]["value"] == 1
    assert classes["bright"]["precision"]["value"] == pytest.approx(1 / 3)
    assert classes["bright"]["found"]["value"] == 1
    assert classes["bright"]["verdicts"]["bad mask"] == 2
    assert (classes["bright"]["drawn"], classes["bright"]["precision"]["answered"]) == (5, 3)
    assert classes["bright"]["worst"] == pytest.approx(1 / 5)
    overall = (size[7] * 1 + size[1] / 3) / size.total()
    assert found["overall"]["precision"]["value"] == pytest.approx(overall)
    assert "no answer" in found["limits"]
    text = (out / "certificate.html").read_text()
    assert found["plan"]["state"]["commits"] in text
    assert "missed objects" in text
    assert "2 of 10 masks of the sample have no answer" in text


def test_the_checksum_is_that_of_the_report(store: Store, run: str, tmp_path: Path) -> None:
    """Who compares the certificate with the report of the run must find the same number."""
    out = tmp_path / "out"
    draw(run, out)
    assert cli.main(["report", run, "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert json.loads((out / "audit.json").read_text())["state"]["commits"] == report["commits_sha256"]


def test_another_state_of_the_run_is_refused(
    store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A certificate for labels that nobody has judged is the worst that can happen here."""
    out = tmp_path / "out"
    rows = draw(run, out)
    file = answer(out, rows, {})
    manifest = ledger.read_manifest(store, run)
    commit = commit_of(store, run, manifest)
    first = next(one for one in runs.rows(store, run, commit) if len(one.instances))
    empty = replace(first, instances=first.instances.above(2), status="empty")
    corrections.write(
        store, run, manifest, {commit.shard_id: [empty]}, by="a", source="x", source_sha256="0", counts={}
    )
    assert cli.main(["audit", run, "--answers", file, "--out", str(out)]) == 2
    assert "was corrected since the sample was drawn (0 versions then, 1 now)" in capsys.readouterr().err
    rewrite(store, run, manifest, lambda one: one, formats=["parquet"])

    def faint(one: ImageLabels) -> ImageLabels:
        return replace(one, instances=replace(one.instances, scores=one.instances.scores * np.float32(0.9)))

    rewrite(store, run, manifest, faint)
    assert cli.main(["audit", run, "--answers", file, "--out", str(out)]) == 2
    assert "has other commits than when the sample was drawn" in capsys.readouterr().err
    assert not (out / "certificate.json").exists()


def test_another_run_is_refused(store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of audits are easily confused."""
    out = tmp_path / "out"
    draw(run, out)
    text = (out / "audit.json").read_text()
    (out / "audit.json").write_text(text.replace("0123456789ab", "ba9876543210"))
    assert cli.main(["audit", run, "--answers", str(out / "answers.csv"), "--out", str(out)]) == 2
    assert "the audit is of run ba9876543210" in capsys.readouterr().err


FAULTS = {
    "stranger": ("mask,verdict\nm1-2,correct\n", "line 2 is of the mask 'm1-2', which is not in the sample"),
    "verdict": ("mask,verdict\n{0},fine\n", "has the verdict 'fine'; accepted are correct, bad mask"),
    "twice": ("mask,verdict\n{0},correct\n{0},correct\n", "has an answer already"),
    "columns": ("a,b\n1,2\n", "nor a table with the columns mask and verdict"),
    "json": ('{"a": 1}', "no JSON export of Label Studio"),
    "bytes": ("\udc80", "is no table that can be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_answers_that_cannot_be_taken_are_one_sentence(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """A verdict that is passed over in silence makes the figures wrong."""
    out = tmp_path / "out"
    rows = draw(run, out)
    content, words = FAULTS[fault]
    (tmp_path / "a.csv").write_bytes(content.replace("{0}", rows[0]["mask"]).encode("utf-8", "surrogateescape"))
    assert cli.main(["audit", run, "--answers", str(tmp_path / "a.csv"), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (out / "certificate.json").exists()


def test_a_folder_without_a_plan_is_refused(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out means another folder each time, and one must be told which."""
    assert cli.main(["audit", run, "--answers", "x.csv", "--out", str(tmp_path)]) == 2
    assert "has no audit.json; name the folder that patchlabel audit --per-class wrote" in capsys.readouterr().err


def test_label_studio_answers_with_a_mask_that_was_redrawn(store: Store, run: str, tmp_path: Path) -> None:
    """A task shows one mask, and what a person made of it is measured against that mask."""
    out = tmp_path / "out"
    draw(run, out)
    tasks = json.loads((out / "tasks-00000.json").read_text())
    sample = {one["counts"]: one for one in json.loads((out / "audit.json").read_text())["masks"]}
    expected = []
    for number, task in enumerate(tasks):
        (region,) = task["predictions"][0]["result"]
        size = region["original_height"], region["original_width"]
        pixels = labelstudio.unbrush(region["value"]["rle"], *size)
        before = next(one for one in sample.values() if f"m{one['image_id']}-{one['index']}" == task["data"]["mask"])
        assert (masks.decode(before["counts"], *size) == pixels).all()
        choice = {"type": "choices", "from_name": "verdict", "to_name": "image", "value": {"choices": ["correct"]}}
        if number < 2:
            whole = pixels.copy()
            whole[:3] = True
            runs_ = bitmaps.row_runs(bitmaps.Crop(pixels=whole, left=0, top=0), *size)
            region["value"]["rle"] = labelstudio.brush(runs_)
            choice["value"] = {"choices": ["bad mask"]}
            expected.append((pixels & whole).sum() / (pixels | whole).sum())
        results = [region] if number == 3 else [region, choice]
        task["annotations"] = [{"result": results, "was_cancelled": number == 4}]
    (tmp_path / "answers.json").write_text(json.dumps(tasks))
    assert cli.main(["audit", run, "--answers", str(tmp_path / "answers.json"), "--out", str(out)]) == 0
    overall = certificate(out)["overall"]
    assert overall["precision"]["answered"] == len(tasks) - 2  # one without a verdict, one that was skipped
    assert overall["redrawn"]["number"] == 2
    assert min(expected) <= overall["redrawn"]["value"] <= max(expected)
    assert overall["accepted"]["value"] > overall["redrawn"]["value"]


def test_pictures_show_the_mask_and_the_page_asks_for_each(run: str, tmp_path: Path) -> None:
    """Without a picture that shows which object is meant, an answer is a guess."""
    out = tmp_path / "out"
    rows = draw(run, out)
    for one in rows:
        with Image.open(out / one["picture"]) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        left, right = pixels[:, : pixels.shape[1] // 2 - 8], pixels[:, pixels.shape[1] // 2 + 8 :]
        red = [((half[..., 0] > 200) & (half[..., 1] < 120)).sum() for half in (left, right)]
        assert red[0] == 0 < red[1]
    text = (out / "judge.html").read_text()
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [one["mask"] for one in data["rows"]] == [one["mask"] for one in rows]
    assert [name for name, _ in data["verdicts"]] == list(verdicts.VERDICTS)


def test_missed_objects_are_counted_in_images_drawn_at_random(
    store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Precision alone is won by a model that finds only the easy half."""
    out = tmp_path / "out"
    rows = draw(run, out, "--images", "4")
    images = [one["mask"] for one in rows if one["mask"].startswith("i")]
    assert len(images) == 4
    known = {f"i{one.image_id}": one for one in runs.opened(store, run).all_rows() if one.status != "quarantined"}
    assert set(images) <= set(known)
    assert all((out / one["picture"]).exists() for one in rows)
    said = {one["mask"]: "correct" for one in rows if one["mask"].startswith("m")}
    said |= dict(zip(images, ["0", "0", "3"], strict=False))
    assert cli.main(["audit", run, "--answers", answer(out, rows, said), "--out", str(out)]) == 0
    recall = certificate(out)["recall"]
    shown = sum(len(known[name].instances.above(0.5)) for name in images[:3])
    assert (recall["drawn"], recall["answered"], recall["missed"]) == (4, 3, 3)
    assert recall["value"] == pytest.approx(shown / (shown + 3))
    assert recall["complete"]["value"] == pytest.approx(2 / 3)
    assert "missed objects" not in certificate(out)["limits"]
    assert "3 objects without a mask in 3 images" in capsys.readouterr().out
    first, second = ({name: verdict for name, verdict in said.items() if name[0] == kind} for kind in "mi")
    (tmp_path / "parts").mkdir()
    files = [answer(out, rows, first), answer(tmp_path / "parts", rows, second)]
    before = certificate(out)["overall"]
    assert cli.main(["audit", run, "--answers", files[0], "--answers", files[1], "--out", str(out)]) == 0
    assert (certificate(out)["overall"], len(certificate(out)["answers"])) == (before, 2)
    said[images[3]] = "many"
    assert cli.main(["audit", run, "--answers", answer(out, rows, said), "--out", str(out)]) == 2
    assert "has 'many' missed objects; accepted is a whole number" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_takes_answers_by_keys_and_makes_the_table(run: str, tmp_path: Path) -> None:
    """An answer that goes to the mask before, or is lost with the window, makes a wrong certificate."""
    out = tmp_path / "out"
    rows = draw(run, out, "--images", "1")
    address = (out / "judge.html").as_uri()
    ready = "document.querySelectorAll('#choices button').length > 0"
    with Browser(tmp_path / "browser") as browser:
        browser.go(address, ready)
        for key in ["1", "5", *["2"] * (len(rows) - 3)]:
            browser.run(f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        assert browser.run("document.getElementById('question').textContent") == "Missed objects"
        browser.go(address, ready)  # as after a crash: it begins where the answers end
        browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: '3'}))")
        browser.run("Blob = class { constructor(parts) { window.saved = parts[0]; } }; URL.createObjectURL = () => ''")
        browser.run("HTMLAnchorElement.prototype.click = () => {}; document.getElementById('save').click()")
        saved = browser.run("window.saved")
        assert not [one for one in browser.complaints if "Failed" in one or "Uncaught" in one]
    found = list(csv.DictReader(io.StringIO(saved)))
    assert [one["mask"] for one in found] == [one["mask"] for one in rows]
    expected = ["correct", "not an object", *["bad mask"] * (len(rows) - 3), "3"]
    assert [one["verdict"] for one in found] == expected
    (tmp_path / "answers.csv").write_text(saved, newline="")
    assert cli.main(["audit", run, "--answers", str(tmp_path / "answers.csv"), "--out", str(out)]) == 0
    assert certificate(out)["overall"]["precision"]["answered"] == len(rows) - 1


def test_names_from_outside_stay_text() -> None:
    """A class or a key may hold markup, or what a spreadsheet takes for a formula."""
    from pipeline.audit import judging, packages

    odd = {"mask": "m1-1", "class": "</script><img src=x>", "image": "=1+1", "verdict": ""}
    text = judging.page("run", "now", verdicts.VERDICTS, [odd])
    assert "</script><img" not in text
    table = packages._table([dict.fromkeys(verdicts.COLUMNS, "=1+1")])
    assert "'=1+1" in table.splitlines()[1]
    assert ",=1" not in table


def _certified(store: Store, run: str, said: str | None, *, target: float = 0.9) -> certificates.Certificate:
    plan = plans.draw(runs.opened(store, run), 50, seed=0, bands=sampling.slices("score=0.8"))
    found = {} if said is None else {one.name: Verdict(verdict=said) for one in plan.masks}
    return certificates.certify(plan, Answers(sources={"a.csv": "0"}, verdicts=found), target=target)


@pytest.mark.parametrize(
    ("said", "words"),
    [("correct", "Accepted: with 95 %"), ("duplicate", "Rejected: with 95 %"), (None, "Nothing was answered yet")],
)
def test_the_page_says_the_result_first(store: Store, run: str, said: str | None, words: str) -> None:
    """Who has to sign reads one sentence."""
    text = page.html(_certified(store, run, said))
    assert words in text
    assert "By score" in text


def test_all_masks_judged_need_no_bounds(store: Store, run: str) -> None:
    """Small runs are judged in full, and JSON has no number for infinity."""
    found = _certified(store, run, "correct")
    assert found.overall.precision.effective is None
    assert json.loads(json.dumps(found.document(), allow_nan=False))["overall"]["decision"] == "accepted"


def test_a_slice_by_a_column_that_is_not_there_is_refused(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo would put all masks into the band `unknown`, after a pass over the whole run."""
    assert cli.main(["audit", run, "--per-class", "5", "--slice", "scor=0.5", "--out", str(tmp_path / "out")]) == 2
    assert "the run has no column scor; it has score, area, contrast" in capsys.readouterr().err
