"""The command `patchlabel`: what it prints, and its exit status."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace

import pytest

from pipeline import cli, doctor, ledger, runs, shards
from pipeline.cli import common
from pipeline.exports import EXPORTS
from pipeline.records import Failure
from pipeline.store import join
from tests.small_runs import IMAGES, commit_of, make_inputs, make_run, overwrite


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """The URI of a sound run of two shards."""
    folder = tmp_path_factory.mktemp("cli")
    make_run(store, str(folder / "run"), folder / "inputs")
    return str(folder / "run")


@pytest.fixture
def config(tmp_path):
    """The path of a config for inputs of three shards."""
    make_inputs(tmp_path / "inputs", 3)
    (tmp_path / "inputs" / "readme.txt").write_text("not an input")
    path = tmp_path / "label.yaml"
    path.write_text(
        f"input: {{uri: {tmp_path / 'inputs'}}}\noutput: {{uri: {tmp_path / 'run'}}}\n"
        "labeler: {name: 'tests.fakes:ThresholdLabeler', batch_size: 2}\n"
    )
    return path


@pytest.fixture
def patchlabel(capsys):
    """Runs the command; gives its exit status, output and complaints."""

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_plan_tells_what_would_run_and_writes_nothing(patchlabel, config, tmp_path):
    """A plan that is wrong, or that already founds the run, is worse than none."""
    before = sorted(tmp_path.rglob("*"))
    code, out, err = patchlabel("plan", "--config", config)
    assert (code, err) == (0, "")
    for words in ("3 (3 tar)", "unknown until they are read", ".txt 1", "(parquet, coco)", "none there yet"):
        assert words in out
    assert sorted(tmp_path.rglob("*")) == before
    code, out, _ = patchlabel("plan", "--config", config, "--json")
    found = json.loads(out)
    assert (found["shards"], found["formats"], found["images"], found["run"]) == (3, {"tar": 3}, None, None)
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "inputs").glob("*.tar"))


def test_plan_counts_single_images(patchlabel, config, tmp_path):
    """Where the number of images is known, it is what the user wants to know."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(b"never read")
    settings = ["--set", f"input.uri={folder}", "--set", "input.images_per_shard=2"]
    code, out, _ = patchlabel("plan", "--config", config, *settings, "--json")
    found = json.loads(out)
    assert (code, found["shards"], found["images"], found["bytes"]) == (0, 3, 5, 50)


def test_plan_tells_of_a_run_that_is_there(patchlabel, store, config, tmp_path):
    """Someone about to resume must learn how much is left, and that another config will be refused."""
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs", shards=3, done=1)
    code, out, _ = patchlabel("plan", "--config", config)
    assert code == 0
    assert "1 shards done, 2 pending" in out
    assert "differs" not in out
    code, out, _ = patchlabel("plan", "--config", config, "--set", "labeler.max_instances=4", "--json")
    run = json.loads(out)["run"]
    assert (run["done"], run["pending"], run["shards_not_in_it"]) == (1, 2, 0)
    assert "labeler.max_instances: 100 -> 4" in run["differences"]


def test_status_exits_0_on_an_unfinished_run(patchlabel, store, tmp_path):
    """Status only tells; a script that polls it must not stop at a run in progress."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs", shards=3, done=1)
    shard = manifest.shards[2]
    ledger.record_failure(store, uri, Failure(shard_id=shard.id, uri=shard.uri, attempts=3, error="it kills workers"))
    code, out, err = patchlabel("status", uri)
    assert (code, err) == (0, "")
    assert "1 of 3 done, 1 pending, 1 failed" in out
    assert "1 (1 not_an_image)" in out
    assert f"{shard.uri}: it kills workers (attempts: 3)" in out
    found = json.loads(patchlabel("status", uri, "--json")[1])
    assert (found["done"], found["images"], found["failures"][0]["attempts"]) == (1, IMAGES, 3)


def test_verify_exits_0_for_a_sound_run_only(patchlabel, store, run, tmp_path):
    """What runs in CI goes by the exit status alone."""
    code, out, err = patchlabel("verify", run)
    assert (code, err) == (0, "")
    assert out.startswith(f"2 of 2 shards, {2 * IMAGES} images, ")
    assert out.endswith(": all sound\n")
    uri = str(tmp_path / "run")
    make_run(store, uri, tmp_path / "inputs", shards=2, done=1)
    code, out, err = patchlabel("verify", uri)
    assert (code, err) == (1, "")
    assert out.splitlines()[0] == "1 of 2 shards are not done"
    assert out.splitlines()[-1].endswith(": 1 fault")


def test_verify_prints_at_most_20_faults_and_json_all(patchlabel, store, tmp_path):
    """A broken run of a million masks must not flood a terminal."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs", shards=1)
    for number in range(30):
        overwrite(store, uri, replace(commit_of(store, uri, manifest), shard_id=f"{number:020x}"))
    code, out, _ = patchlabel("verify", uri)
    assert code == 1
    assert len(out.splitlines()) == 22
    assert out.splitlines()[20] == "and 10 more; --json names all"
    code, out, _ = patchlabel("verify", uri, "--json")
    assert code == 1
    assert len(json.loads(out)["faults"]) == 30


def test_export_prints_one_line_and_warns_of_missing_shards(patchlabel, store, run, tmp_path):
    """The warning belongs on stderr, so that the line on stdout stays one that scripts can use."""
    code, out, err = patchlabel("export", run, "--format", "coco", "--out", tmp_path / "out.json")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path}/out.json: {2 * IMAGES - 2} images, without 2 quarantined, ")
    assert out.count("\n") == 1
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs", shards=3, done=1)
    code, out, err = patchlabel("export", tmp_path / "run", "--format", "coco", "--out", tmp_path / "out.json")
    assert code == 0
    assert err == "warning: 2 shards of the run not done, and so not exported\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "/nowhere/at/all"], "/nowhere/at/all is no labeling run"),
        (["verify", "/nowhere/at/all"], "is no labeling run"),
        (["export", "/nowhere", "--format", "coco", "--out", "x.json"], "is no labeling run"),
        (["export", "/nowhere", "--format", "xml", "--out", "x.json"], "'xml'"),
        (["export", "/nowhere", "--format", "coco"], "--out"),
        (["export", "/nowhere", "--format", "coco", "--out", "x", "--min-score", "2"], "0<=x<=1"),
        (["plan"], "--config"),
        (["plan", "--config", "/nowhere.yaml"], "/nowhere.yaml: no such config file"),
        (["status"], "RUN_URI"),
        (["celebrate"], "celebrate"),
        (["export", "", "--format", "coco", "--out", "x"], "'RUN_URI': it is empty"),
        (["export", "/nowhere", "--format", "coco", "--out", ""], "'--out': it is empty"),
        (["export", "/nowhere", "--format", "coco", "--out", "x", "--min-score", "nan"], "nan is not a finite number"),
        (["report", "/nowhere", "--price", "inf"], "'--price': inf is not a finite number"),
        (["gallery", "/nowhere", "--out", "x", "--truth", " "], "'--truth': it is empty"),
        (["--loudly"], "--loudly"),
    ],
)
def test_refused_input_is_one_sentence_and_exit_2(patchlabel, arguments, words):
    """A traceback tells a user nothing, and an exit status of 1 would mean a faulty run."""
    code, out, err = patchlabel(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_storage_fault_is_one_sentence_and_exit_1(patchlabel, store, tmp_path):
    """Damage found while reading is no fault of the command line."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs", shards=1)
    store.delete(join(uri, commit_of(store, uri, manifest).outputs["parquet"].path))
    code, out, err = patchlabel("export", uri, "--format", "coco", "--out", tmp_path / "out.json")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "missing, though it was committed" in err


@pytest.mark.parametrize(
    "command", [*(["export", "--format", name] for name in EXPORTS), ["gallery"], ["report"]], ids=lambda one: one[-1]
)
def test_a_place_that_cannot_be_written_is_refused_before_the_labels_are_read(patchlabel, store, tmp_path, command):
    """A bucket that was mistyped, found when a day's reading was to be written there."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs", shards=1)
    store.delete(join(uri, commit_of(store, uri, manifest).outputs["parquet"].path))  # which reading would find
    (tmp_path / "file").write_text("")
    code, out, err = patchlabel(*command, uri, "--out", tmp_path / "file/out")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --out cannot be written: {tmp_path / 'file/out'}: ")


def test_ctrl_c_ends_with_130_and_no_traceback(patchlabel, run, monkeypatch):
    """An impatient user gets their prompt back, not a page of frames."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.cli.verify.verify", interrupted)
    code, out, err = patchlabel("verify", run)
    assert (code, out) == (130, "")
    assert err.strip() == "error: interrupted"


def test_ctrl_c_in_compiled_code_is_no_other(patchlabel, run, monkeypatch):
    """What numba makes of it was a page of frames, and an exit status of 1."""

    def interrupted(*_, **__):
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr("pipeline.cli.verify.verify", interrupted)
    code, out, err = patchlabel("verify", run)
    assert (code, out, err.strip()) == (130, "", "error: interrupted")


@pytest.mark.parametrize("command", [["export", "--format", "parquet"], ["export", "--format", "coco"], ["gallery"]])
def test_a_full_disk_for_temporary_files_is_one_sentence(patchlabel, run, tmp_path, monkeypatch, command):
    """A container with a small /tmp is common, and where TMPDIR leads, nobody knows by heart."""
    fetch = shards.fetch

    def full(store, uri, output, folder):
        fetch(store, uri, output, folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.shards.fetch", full)
    code, out, err = patchlabel(*command, run, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err == f"error: {tempfile.gettempdir()} is full; set TMPDIR to a folder with more room\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_names_of_classes_cannot_command_a_terminal(capsys):
    """A class that is called so by whoever made the checkpoint must not clear the screen of whoever reads it."""
    table = common.table_text(["class", "masks"], [("evil\x1b[2J\nname", 1), ("\u05d0", 2)])
    assert table.splitlines()[1:] == ["evil\\x1b[2J\\nname      1", "\u05d0                      2"]
    common.print_lines([("counting", "7 of evil\x1b[2J")])
    assert capsys.readouterr().out == "counting     7 of evil\\x1b[2J\n"


def test_a_reader_that_leaves_early_is_no_error(run):
    """`patchlabel status | head` must not end with a complaint about a broken pipe."""
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "status", run], stdout=write, stderr=subprocess.PIPE, timeout=120
        )
    finally:
        os.close(write)
    assert ended.stderr == b""


def test_the_command_imports_neither_torch_nor_ray(run):
    """A status that takes ten seconds to import what it does not use is not asked for twice."""
    script = "import sys; from pipeline.cli import main; main(sys.argv[1:]); print({'torch', 'ray'} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", script, "status", run], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.splitlines()[-1] == "set()"


def said(**answers):
    """A script in place of the one that imports torch, which takes long."""
    return f"import json; print(json.dumps({answers!r}))"


def test_doctor_fails_where_something_needed_is_missing(patchlabel, monkeypatch):
    """`doctor && label` must stop on a machine without detectron2, and say how to get it."""
    monkeypatch.setattr(doctor, "_PACKAGES", ("pyarrow", "no-such-package"))
    monkeypatch.setattr(doctor, "_MODEL", said(torch="2", torchvision="2", **{"detectron2 error": "ImportError: no"}))
    code, out, _ = patchlabel("doctor")
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert code == 1
    assert lines["pyarrow"].startswith("ok")
    assert lines["no-such-package"].startswith("missing")
    assert lines["torch"].startswith("ok")
    assert lines["detectron2"].startswith("missing")
    assert "make install" in lines["detectron2"]


def test_doctor_survives_an_import_that_crashes(patchlabel, monkeypatch):
    """A broken build of torch ends its process; the doctor is there to tell."""
    monkeypatch.setattr(doctor, "_MODEL", "import os; os._exit(3)")
    code, out, _ = patchlabel("doctor")
    assert code == 1
    assert "missing  torch" in out
    assert "the interpreter ended with 3" in out


def test_doctor_tells_whether_storage_answers(patchlabel, s3_uri, s3_environment, monkeypatch):
    """Most failures of a first run are credentials or an endpoint; each has its own line, without the secret."""
    monkeypatch.setattr(doctor, "_PACKAGES", ())
    monkeypatch.setattr(doctor, "_MODEL", said(torch="2", torchvision="2", detectron2="1"))
    code, out, _ = patchlabel("doctor", "--uri", s3_uri)
    assert code == 0
    assert "found, by env" in out
    assert f"{s3_environment['AWS_ENDPOINT_URL']} answers" in out
    assert f"{s3_uri} answers, and nothing is there" in out
    assert s3_environment["AWS_SECRET_ACCESS_KEY"] not in out
    code, out, _ = patchlabel("doctor", "--uri", s3_uri + "-elsewhere")
    assert code == 1
    assert "missing  place" in out
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    code, out, _ = patchlabel("doctor")
    assert code == 1
    assert "missing  S3 endpoint" in out


@pytest.mark.slow
def test_doctor_finds_this_installation_complete(patchlabel, monkeypatch):
    """The doctor must be right about the installation that the tests run in."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    code, out, _ = patchlabel("doctor")
    assert code == 0, out
    assert "ok       detectron2" in out


def test_a_shell_completes_commands_and_values(patchlabel):
    """Nobody types `--format labelstudio` from memory; a script that a shell cannot source is worse than none."""
    code, script, _ = patchlabel("completion", "bash")
    assert code == 0
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0

    def completed(*words):
        environment = {"_PATCHLABEL_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words)}
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli"],
            env={**os.environ, **environment, "COMP_CWORD": str(len(words) - 1)},
            capture_output=True,
            text=True,
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("patchlabel", "ex") == ["export"]
    assert "labelstudio" in completed("patchlabel", "export", "RUN", "--format", "")


def test_status_counts_what_a_view_shows(patchlabel, store, run, tmp_path):
    """A lead asks how many masks are left at a threshold, and by class."""
    (tmp_path / "classes.yaml").write_text("dark: bright")
    rows = list(runs.read_rows(store, run))
    kept = sum(int((row.instances.scores >= 0.9).sum()) for row in rows)
    _, out, _ = patchlabel("status", run, "--min-score", "0.9", "--taxonomy", tmp_path / "classes.yaml")
    assert f"counting     {kept} of {sum(len(row.instances) for row in rows)} masks ({kept} bright), in " in out
    _, out, _ = patchlabel("status", run, "--min-score", "0.9", "--json")
    assert sum(json.loads(out)["view"]["classes"].values()) == kept
    _, out, _ = patchlabel("status", run)
    assert "counting" not in out


def test_a_mistyped_command_is_helped(patchlabel):
    """The likeliest command is named, and the help that says more."""
    code, _, err = patchlabel("exprot")
    assert (code, err) == (2, "error: no such command: exprot; did you mean export?; see patchlabel --help\n")
    code, _, err = patchlabel("export", "RUN")
    assert code == 2
    assert err.count("\n") == 1
    assert "--format" in err
    assert err.endswith("see patchlabel export --help\n")
