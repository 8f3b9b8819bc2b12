"""Secrets of the user, which must not stand in anything that a run leaves behind or says."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import evaluate, label, train
from pipeline import cli, doctor, runs
from pipeline.config import EvaluateConfig, LabelConfig, TrainConfig, load
from pipeline.errors import UserError
from pipeline.store import Store
from tests.fakes import draw, write_tar
from tests.refusals import PATIENCE_S, REPOSITORY
from tests.security.planted import ENVIRONMENT, MARK, URIS, betrayed, betraying

Main = Callable[[list[str]], int]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)


def test_the_search_finds_what_is_planted(tmp_path: Path, store: Store) -> None:
    """A search that finds nothing, ever."""
    (tmp_path / "a.json").write_text(json.dumps({"uri": URIS["aws"]}))
    pq.write_table(pa.table({"key": [f"{MARK} again " * 9]}), tmp_path / "b.parquet", compression="zstd")
    (tmp_path / f"{MARK}.txt").write_text("nothing")
    (tmp_path / "clean.txt").write_text("nothing")
    assert len(betraying(store, [str(tmp_path)])) == 3
    assert all(betrayed(uri) for uri in URIS.values())
    assert all(betrayed(value) for value in ENVIRONMENT.values())


KEYS: dict[type[Any], list[str]] = {
    LabelConfig: ["input.uri", "input.images", "output.uri", "labeler.config", "labeler.weights", "labeler.categories"],
    TrainConfig: ["data.train.annotations", "data.train.images", "model.weights", "run.storage"],
    EvaluateConfig: ["predictions", "truth.annotations", "truth.images", "output"],
}
LISTED = ["input.uri", "labeler.overrides", "labeler.categories"]


@pytest.mark.parametrize(
    ("kind", "setting"),
    [(kind, f"{key}={{}}") for kind, keys in KEYS.items() for key in keys]
    + [(LabelConfig, f"{key}=['fine', {{}}]") for key in LISTED]
    + [(TrainConfig, "data.train=[{{run: {}}}]"), (LabelConfig, "input=[{}]"), (LabelConfig, "run.adress={}")],
)
def test_no_config_holds_a_secret(kind: type[Any], setting: str, tmp_path: Path) -> None:
    """A password in the manifest of a run, or in the very sentence that refuses it."""
    raw: dict[str, Any] = {"input": {"uri": "in"}, "output": {"uri": "out"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw if kind is LabelConfig else {}))
    for form, uri in URIS.items():
        with pytest.raises(UserError) as refusal:
            load(kind, str(path), [setting.format(f'"{uri}"')])
        sentence = str(refusal.value)
        assert not betrayed(sentence), form
        assert setting.partition("=")[0] in sentence
        assert "holds a password" in sentence or "holds a signed URL" in sentence, form
        assert "\n" not in sentence


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a b/c@d:e.tar",
        "s3://bucket/key=1/train-*.tar",
        "s3://bucket/img-?.jpg",
        "https://host:8080/a@b/c.tar",
        "https://host/a.tar?download=true",
        "http://[::1]:9000/a.tar",
        "az://container@account/a",
        "C:/a@b?token=1",
        "a:b@c",
    ],
)
def test_what_is_no_secret_is_taken(uri: str, tmp_path: Path) -> None:
    """Ports, wildcards and names with odd characters taken for passwords."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"input": {"uri": uri}, "output": {"uri": "out"}}))
    assert load(LabelConfig, str(path)).input.uri == uri


@pytest.mark.parametrize(
    ("command", "uri"),
    [
        (command, uri)
        for command in (
            "status",
            "report",
            "verify",
            "export --format coco --out",
            "gallery --out",
            "canary --out",
            "review --budget 1 --out",
            "doctor --uri",
        )
        for uri in (URIS["password"], f"nosuch://me:{MARK}@host/a?sig={MARK}", f"missing/{URIS['azure']}")
    ]
    + [("status", URIS["aws"])],
)
def test_no_sentence_of_patchlabel_quotes_one(
    command: str, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets of a URI on the screen, and so in the logs of whatever runs the command."""
    if command == "doctor --uri":
        monkeypatch.setattr(doctor, "_asked", lambda script: {"error": "not asked here"})
    code = cli.main([*command.split(), uri, *([str(tmp_path)] if "--out" in command else [])])
    said = "".join(capsys.readouterr())
    assert (code, betrayed(said)) in ((1, []), (2, []))
    assert said.count("\n") == 1 or command == "doctor --uri"


@pytest.mark.parametrize("main", [label.main, train.main, evaluate.main])
def test_no_sentence_of_a_job_quotes_one(
    main: Main, at_home: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same where the config itself is wrong: its name, a `--set` without a value, a value of the wrong kind."""
    path = tmp_path / "config.yaml"
    path.write_text("{}")
    for uri in (URIS["password"], URIS["aws"], URIS["azure"]):
        settings = (["--set", uri], ["--set", f"run={uri}"])
        for words in (["--config", uri], *(["--config", str(path), *one] for one in settings)):
            assert main(words) == 2
            out, err = capsys.readouterr()
            assert (out, betrayed(err), err.count("\n")) == ("", [], 1), words


class Images(http.server.SimpleHTTPRequestHandler):
    """Serves files to whoever signs, and notes under which names."""

    def do_GET(self) -> None:
        if MARK not in self.path:
            self.send_error(403)
        else:
            super().do_GET()

    do_HEAD = do_GET  # noqa: N815 http.server's own name

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def signed_urls(tmp_path: Path) -> Iterator[list[str]]:
    """URLs of two images, and of one that is gone, which give access by what they hold."""
    folder = tmp_path / "web"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(draw(number))
    handler = functools.partial(Images, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield [f"http://127.0.0.1:{server.server_port}/{i}.png?X-Amz-Signature={MARK}" for i in (0, 1, "gone")]
        server.shutdown()
        thread.join()


def test_a_run_betrays_nothing(
    s3_uri: str,
    planted: None,
    signed_urls: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Credentials of the environment, and signatures in images' URLs, in manifest, commits, labels, logs, reports."""
    store = Store()
    table = pa.table({"url": signed_urls})  # which is the key, too
    pq.write_table(table, tmp_path / "urls.parquet")
    store.put(f"{s3_uri}/in/urls.parquet", tmp_path / "urls.parquet")
    store.put(f"{s3_uri}/in/cut.parquet", (tmp_path / "urls.parquet").read_bytes()[:-9])
    config = tmp_path / "label.yaml"
    run = f"{s3_uri}/run"
    raw = {
        "input": {"uri": f"{s3_uri}/in/"},
        "output": {"uri": run},
        "labeler": {"name": "tests.fakes:ThresholdLabeler"},
    }
    config.write_text(yaml.safe_dump(raw))
    said = command("jobs.label", "--config", str(config), code=1)
    assert "1 of 2 shards are committed" in said
    rows = list(runs.read_rows(store, run))
    assert [row.status for row in rows] == ["labelled", "labelled", "quarantined"]
    assert [row.uri.partition("?")[2] for row in rows] == ["***"] * 3

    words = ("plan --config", "status", "status --json", "verify", "verify --json", "export --format coco --out")
    places = {"plan --config": [str(config)], "export --format coco --out": [str(tmp_path / "out/all.json"), run]}
    for line in words:
        assert cli.main([*line.split(), *places.get(line, [run])]) in (0, 1)
    said += "".join(capsys.readouterr())

    (tmp_path / "truth.json").write_text(json.dumps(truth_of(rows)))
    assert evaluate.main(["--config", str(evaluation(tmp_path, run))]) == 0
    said += "".join(capsys.readouterr()) + caplog.text
    assert betrayed(said) == []
    assert betraying(store, [run, str(tmp_path / "out")]) == []
    assert len(list(store.list(f"{run}/"))) >= 4


def truth_of(rows: list[Any]) -> dict[str, Any]:
    """A truth of the images of a run, with an object or two."""
    images = [{"id": n, "file_name": row.key, "height": 32, "width": 48} for n, row in enumerate(rows, start=1)]
    box = {"image_id": 1, "category_id": 1, "bbox": [4, 4, 9, 9], "area": 81, "iscrowd": 0}
    annotations = [{**box, "id": 1, "segmentation": [[4, 4, 13, 4, 13, 13, 4, 13]]}]
    categories = [{"id": 1, "name": "bright"}, {"id": 7, "name": "dark"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def evaluation(folder: Path, run: str) -> Path:
    raw = {
        "predictions": run,
        "truth": {"annotations": str(folder / "truth.json"), "images": str(folder / "images")},
        "metrics": ["coco"],
        "output": str(folder / "out/report"),
    }
    (folder / "images").mkdir()
    for number, name in enumerate("abc"):
        (folder / "images" / name).write_bytes(draw(number))
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def command(module: str, *words: str, code: int) -> str:
    """What a command of jobs/ says, on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_password_of_a_web_server_comes_from_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place that the refusal of a password names, which then is of no use."""
    asked: list[str | None] = []

    class Guarded(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            super().do_GET() if asked[-1] else self.send_error(401)

        do_HEAD = do_GET  # noqa: N815 http.server's own name

        def log_message(self, *words: object) -> None:
            pass

    write_tar(tmp_path / "a.tar", {"0.png": draw(0)})
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    handler = functools.partial(Guarded, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        data = Store().get(f"http://127.0.0.1:{server.server_port}/a.tar")
        server.shutdown()
        thread.join()
    assert data == (tmp_path / "a.tar").read_bytes()
    assert set(asked) == {"Basic bWU6c2VjcmV0"}
