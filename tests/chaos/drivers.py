"""The driver of a run as a process, and as whoever starts it again."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.nodes import REPOSITORY


class Driver:
    """`python -m jobs.label`, and whoever starts it again until it exits with 0."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._read = 0
        self.done = False
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=REPOSITORY, env=dict(self._environment), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._killed = False

    def kill(self) -> bool:
        """SIGKILL -> whether it was at work."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.kill()
        self._killed = True
        return True

    def ended(self) -> tuple[str, str] | None:
        """How it ended, once: "0", "1", "2", "killed" or the signal; and what it said since it was started."""
        if self._process is None or self._process.poll() is None:
            return None
        code = self._process.returncode
        self._process = None
        self.done = code == 0
        said = self._log.read_bytes()[self._read :]
        self._read += len(said)
        return "killed" if self._killed and code == -signal.SIGKILL else str(code), said.decode(errors="replace")
