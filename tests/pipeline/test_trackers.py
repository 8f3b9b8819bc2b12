"""The trackers: W&B writing offline, MLflow with a database on disk; both only where they are installed."""

import importlib.util
import struct
import sys

import pytest

from pipeline import trackers
from pipeline.errors import UserError

ROWS = [{"step": 20.0 * n, "time": 1.7e9 + n, "loss": 1 / n, "val mask AP*": n / 10} for n in range(1, 7)]
CONFIG = {"run": {"storage": "s3://me:secret@bucket/x", "keep": 2}, "schedule": {"lr": None, "steps": 120}}


def opened(name, folder):
    return trackers.open_trackers([name], run_name="A name", run_id="s3://bucket/it's", config=CONFIG, folder=folder)


def installed(name):
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


@pytest.fixture
def mlflow(monkeypatch):
    for key in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(key, raising=False)
    if not installed("mlflow"):
        pytest.skip("needs mlflow, which is not installed")
    import mlflow

    return mlflow


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if not installed("wandb"):
        pytest.skip("needs wandb, which is not installed")
    import wandb

    return wandb


def test_none():
    """A training without trackers, or with the file that is none of these, needs no package."""
    none = trackers.open_trackers(["tensorboard"], run_name="a", run_id="a", config={})
    assert len(none) == 0
    none.log(ROWS[0])
    none.close("finished")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_not_installed(name, tmp_path, monkeypatch):
    """A tracker that is not there is refused in a sentence, not in the middle of a training; nor is ./wandb taken for
    it, a folder that W&B leaves in the working directory."""
    if installed(name):
        pytest.skip(f"{name} is installed")
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=rf"^run\.trackers names {name}, which is not installed; pip install {name}$"):
        trackers.open_trackers(["tensorboard", name], run_name="a", run_id="a", config={})


def test_damaged_installation(tmp_path, monkeypatch):
    """A tracker that cannot be imported, as another package does not fit it, is refused in a sentence."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/__init__.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="wandb, which cannot be imported: No module named 'a_package_that_is_not"):
        trackers.open_trackers(["wandb"], run_name="a", run_id="a", config={})


def test_unknown():
    """A misspelt tracker is not passed over."""
    with pytest.raises(UserError, match=r"names wand; accepted are tensorboard, wandb, mlflow"):
        trackers.open_trackers(["wand"], run_name="a", run_id="a", config={})


@pytest.mark.filterwarnings("ignore")
def test_mlflow(mlflow, tmp_path):
    """A training that goes on is one run with one curve, which knows its config but no password."""
    again = [row | {"time": row["time"] + 100} for row in ROWS[2:]]
    for rows, status, seen in ((ROWS[:4], "killed", ROWS[:4]), (again, "finished", ROWS[:4] + again[2:])):
        tracker = opened("mlflow", tmp_path)
        for row in rows:
            tracker.log(row)
        tracker.close(status)
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("patchlabel").experiment_id])
        assert (run.info.run_name, run.info.status) == ("A name", status.upper())
        assert run.data.params["run.storage"] == "s3://***@bucket/x"
        assert run.data.params["schedule.steps"] == "120"
        for name, key in (("loss", "loss"), ("val mask AP_", "val mask AP*")):
            points = client.get_metric_history(run.info.run_id, name)
            assert [(point.step, point.timestamp, point.value) for point in points] == [
                (row["step"], row["time"] * 1000, row[key]) for row in seen
            ]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_refuses(mlflow, tmp_path, monkeypatch):
    """Where MLflow is set up wrongly, the user learns it before the first step."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    with pytest.raises(UserError, match=r"run\.trackers: mlflow refuses its settings: .*nonsense"):
        opened("mlflow", tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_does_not_answer(mlflow, tmp_path, monkeypatch, caplog):
    """A server that is down is no reason not to train."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = opened("mlflow", tmp_path)
    assert "going on without mlflow" in caplog.text
    tracker.log(ROWS[0])
    tracker.close("failed")


def records(path):
    """The records of a file of W&B, whose parts lie in blocks of 32 KiB, each with a checksum, a length and a kind."""
    from wandb.proto import wandb_internal_pb2

    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the only part, or the last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.mark.filterwarnings("ignore")
def test_wandb(wandb, tmp_path):
    """A training that goes on is the same run, with its rows at their steps, and its config without a password."""
    ids = set()
    for rows, status, code in ((ROWS[:4], "killed", 1), (ROWS[4:], "finished", 0)):
        tracker = opened("wandb", tmp_path)
        for row in rows:
            tracker.log(row)
        tracker.close(status)
        wandb.teardown()  # waits for the process that writes
        newest = max(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
        found = list(records(newest))
        (run,) = (record.run for record in found if record.HasField("run"))
        assert (run.display_name, run.project) == ("A name", "patchlabel")
        ids.add(run.run_id)
        assert {item.key: item.value_json for item in run.config.update}["run.storage"] == '"s3://***@bucket/x"'
        assert [record.exit.exit_code for record in found if record.HasField("exit")] == [code]
        history = [record.history for record in found if record.HasField("history")]
        assert [entry.step.num for entry in history] == [row["step"] for row in rows]
        values = [{item.key or item.nested_key[0]: item.value_json for item in entry.item} for entry in history]
        assert [float(value["loss"]) for value in values] == pytest.approx([row["loss"] for row in rows])
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
    assert len(ids) == 1
