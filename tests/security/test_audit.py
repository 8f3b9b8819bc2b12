"""The audit of the locked packages, which continuous integration runs before the tests."""

from __future__ import annotations

import http.server
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.refusals import REPOSITORY

AUDITOR = REPOSITORY / "build/audit/bin/python"

#: What OSV knew of three packages, cut to what is read of it.
ADVISORIES = {
    ("urllib3", "1.26.4"): ("GHSA-q2q7-5pp4-w6pg", "CVE-2021-33503", "1.26.5"),
    ("pillow", "9.5.0"): ("GHSA-3f63-hfp8-52jq", "CVE-2023-50447", "10.2.0"),
    ("torch", "2.0.0"): ("GHSA-0000-0000-0000", "CVE-2000-0000", None),
}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY / ".ci/audit.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["audit"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*fix_versions: str, skipped: bool = False) -> dict[str, Any]:
    """What pip-audit prints of two packages: one with a hole, and one without, or that it could not ask about."""
    hole = {"id": "PYSEC-1", "fix_versions": list(fix_versions), "aliases": ["CVE-1"], "description": ""}
    other = {"name": "b", "skip_reason": "not found"} if skipped else {"name": "b", "version": "2", "vulns": []}
    return {"dependencies": [{"name": "a", "version": "1", "vulns": [hole]}, other], "fixes": []}


@pytest.mark.parametrize(
    ("fixed", "skipped", "accepted", "code", "said"),
    [
        (("2", "3"), False, {}, 1, ["error: a 1: PYSEC-1 (CVE-1), fixed in 2, 3"]),
        ((), False, {}, 0, ["note: a 1: PYSEC-1 (CVE-1), no fix is known", "no vulnerability is known that a newer "]),
        (("2",), False, {"CVE-1": "b needs 1"}, 0, ["note: a 1: PYSEC-1 (CVE-1), fixed in 2; accepted, as b n", "no "]),
        ((), True, {}, 75, ["note: a 1", "warning: NOT AUDITED: 1 packages that no service could be asked about: b"]),
        (("2",), True, {}, 1, ["error: a 1", "warning: NOT AUDITED: 1 packages"]),
    ],
)
def test_what_fails_the_build(
    audit: ModuleType, fixed: tuple[str, ...], skipped: bool, accepted: dict[str, str], code: int, said: list[str]
) -> None:
    """A hole with a remedy that passes; one without that stops all work; a package passed over in silence."""
    answer = audit.read(report(*fixed, skipped=skipped))
    found, lines = audit.judge(answer.holes, answer.unknown, accepted)
    assert found == code
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True)), lines


def test_no_answer_is_not_all_well(audit: ModuleType) -> None:
    """pip-audit itself says "no known vulnerabilities" of packages that it could not look up."""
    assert audit.judge((), None, {}) == (75, ["warning: NOT AUDITED: neither PyPI nor OSV answered"])


class Osv(http.server.BaseHTTPRequestHandler):
    """Answers as https://api.osv.dev/v1/query does."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        found = ADVISORIES.get((name, asked["version"]))
        answer = json.dumps({"vulns": [advisory(name, *found)]} if found else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words: object) -> None:
        pass


def advisory(package: str, id: str, alias: str, fixed: str | None) -> dict[str, Any]:
    events = [{"introduced": "0"}, *([{"fixed": fixed}] if fixed else [])]
    affected = {
        "package": {"name": package, "ecosystem": "PyPI", "purl": f"pkg:pypi/{package}"},
        "ranges": [{"type": "ECOSYSTEM", "events": events}],
    }
    time = "2024-01-01T00:00:00Z"
    return {"id": id, "aliases": [alias], "summary": "", "published": time, "modified": time, "affected": [affected]}


@pytest.fixture
def osv() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def run(osv_url: str, *locks: Path) -> tuple[int, str]:
    if not AUDITOR.exists():
        pytest.skip("needs the auditor, which `make audit` installs")
    words = [str(AUDITOR), ".ci/audit.py", "--osv-url", osv_url, *map(str, locks)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def lock(path: Path, *packages: str) -> Path:
    path.write_text("".join(f"{one} \\\n    --hash=sha256:{'0' * 64}\n" for one in packages))
    return path


def test_pip_audit_over_lock_files(osv: str, tmp_path: Path) -> None:
    """An auditor that is called wrongly, or whose report changed: it would find nothing."""
    sound = lock(tmp_path / "a.lock", "idna==3.7")
    assert run(osv, sound) == (0, "no vulnerability is known that a newer version mends\n")
    code, said = run(osv, sound, lock(tmp_path / "b.lock", "urllib3==1.26.4", "pillow==9.5.0", "torch==2.0.0"))
    assert code == 1
    assert said.splitlines() == [
        "error: pillow 9.5.0: CVE-2023-50447 (GHSA-3f63-hfp8-52jq), fixed in 10.2.0",
        "note: torch 2.0.0: CVE-2000-0000 (GHSA-0000-0000-0000), no fix is known",
        "error: urllib3 1.26.4: CVE-2021-33503 (GHSA-q2q7-5pp4-w6pg), fixed in 1.26.5",
    ]


def test_the_locks_of_this_project_can_be_audited(osv: str) -> None:
    """A lock file in a form that the auditor cannot read."""
    locks = sorted(REPOSITORY.glob("requirements*.lock"))
    assert {"requirements.lock", "requirements-dev.lock", "requirements-audit.lock"} <= {one.name for one in locks}
    assert run(osv, *locks) == (0, "no vulnerability is known that a newer version mends\n")


def test_a_service_that_is_down_and_a_lock_that_is_none(osv: str, tmp_path: Path) -> None:
    """A build that stops when the network is down; one that goes on although the auditor is broken."""
    code, said = run("http://127.0.0.1:1/v1/query", lock(tmp_path / "a.lock", "idna==3.7"))
    assert code == 75
    assert said.splitlines()[-1] == "warning: NOT AUDITED: neither PyPI nor OSV answered"
    (tmp_path / "b.lock").write_text("this is no lock file\n")
    code, said = run(osv, tmp_path / "b.lock")
    assert code == 1
    assert said.startswith("error: pip-audit failed: ")
