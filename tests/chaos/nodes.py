"""A Ray cluster on this machine to kill things in: each node is a session of processes, some in a network of their own.

A head without CPUs holds the GCS and the drivers and is left alone. An isolated node lives in a network namespace,
with a cable (a pair of veth) to the rest, which can be pulled; that takes root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

#: A node whose raylet does not answer is given up after about five seconds, not half a minute.
_SYSTEM = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
_HEAD_S, _FLEET_S = 120.0, 300.0
_QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def environment(extra: Mapping[str, str], temp: Path) -> dict[str, str]:
    """The environment of nodes, drivers and commands: no token, no threads, the code of this repository."""
    ours = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(temp),
        "RAY_worker_niceness": "0",
        "RAY_raylet_start_wait_time_s": "90",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
    return {**kept, **ours, **extra}


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """A node. `starting` is its `ray start`, whose number the session has; `cable` the host's end of its link."""

    starting: subprocess.Popen[bytes]
    cable: str | None = None

    def __str__(self) -> str:
        return f"node {self.session}"

    @property
    def session(self) -> int:
        return self.starting.pid

    @property
    def raylet(self) -> int | None:
        """Its raylet's process, while it lives."""
        return next((pid for pid, words in processes(self.session)[self.session] if _is_raylet(words)), None)

    @property
    def id(self) -> str | None:
        """What Ray calls it."""
        for _, words in processes(self.session)[self.session]:
            if _is_raylet(words):
                return next(word.partition("=")[2] for word in words if word.startswith("--node_id="))
        return None


class Nodes:
    """The head, and whatever nodes have joined. A context manager that leaves no process and no network behind."""

    def __init__(self, extra: Mapping[str, str], *, can_isolate: bool) -> None:
        """`extra` goes into every node's environment."""
        self.temp = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))  # short: Ray's sockets have long names below it
        self.environment = environment(extra, self.temp)
        self.can_isolate = can_isolate and os.geteuid() == 0 and shutil.which("ip") is not None
        self._net = f"10.{100 + os.getpid() % 100}"
        self._ip = f"{self._net}.0.1" if self.can_isolate else "127.0.0.1"
        self._namespaces: dict[str, int] = {}
        self._hired = 0
        self.alive: list[Node] = []
        self.log = self.temp / "nodes.log"
        self._all: list[Node] = []
        self.address = f"{self._ip}:{_free_port()}"

    def __enter__(self) -> Nodes:
        try:
            if self.can_isolate:
                _ip("addr", "add", f"{self._ip}/32", "dev", "lo")
            head = self._start(
                *("--head", f"--port={self.address.rpartition(':')[2]}", "--num-cpus=0", "--include-dashboard=false"),
                *(f"--temp-dir={self.temp}/ray", f"--system-config={json.dumps(_SYSTEM)}"),
                *(f"--node-ip-address={self._ip}", f"--ray-client-server-port={_free_port()}"),
            )
            if head.starting.wait(_HEAD_S):
                raise RuntimeError(f"the head does not start: {self.log.read_text(errors='replace')[-2000:]}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for node in self._all:
            kill_session(node)
        for name in self._namespaces:
            _ip("netns", "del", name)
        if self.can_isolate:
            _ip("addr", "del", f"{self._ip}/32", "dev", "lo")
        shutil.rmtree(self.temp, ignore_errors=True)

    def join(self, *, isolated: bool = False, cpus: int = 1) -> Node:
        """Begin to start a node; it is there a few seconds later."""
        self._hired += 1
        cable, words = None, [f"--node-ip-address={self._ip}"]
        if isolated and self.can_isolate:
            cable, ip = self._network(self._hired)
            words = [f"--node-ip-address={ip}"]
        # Nodes of one machine that start at the same time would choose the same sockets.
        words.append(f"--temp-dir={self.temp}/{self._hired}")
        node = self._start(f"--address={self.address}", f"--num-cpus={cpus}", *words, cable=cable)
        self.alive.append(node)
        return node

    def fleet(self, *, plain: int, isolated: int, cpus: int = 1) -> None:
        """Have so many nodes of each kind, all of them well, and wait for them.

        Raises:
            RuntimeError: they do not start.
        """
        for node in self.given_up():
            kill_session(node)
        for kind, wanted in ((False, plain), (True, isolated if self.can_isolate else 0)):
            there = [node for node in self.alive if (node.cable is not None) == kind]
            for node in there[wanted:]:
                self.lose(node)
            for _ in range(wanted - len(there)):
                self.join(isolated=kind, cpus=cpus)
        deadline = time.monotonic() + _FLEET_S
        while len(self.well()) < len(self.alive):
            if time.monotonic() > deadline:
                raise RuntimeError(f"nodes do not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)
            self.heal()

    def given_up(self) -> list[Node]:
        """The nodes that are not counted on any more. Something of them may still be at work."""
        return [node for node in self._all[1:] if node not in self.alive]

    def well(self) -> list[Node]:
        """The nodes that have joined, and whose raylet lives."""
        there = processes(*(node.session for node in self.alive))
        return [
            node
            for node in self.alive
            if node.starting.poll() == 0 and any(_is_raylet(words) for _, words in there[node.session])
        ]

    def heal(self) -> None:
        """Let another node join for each that did not manage to, or died by itself."""
        well = self.well()
        for node in [node for node in self.alive if node.starting.poll() is not None and node not in well]:
            self.lose(node)
            self.join(isolated=node.cable is not None)

    def lose(self, node: Node) -> None:
        """The machine of a node is gone."""
        self.alive.remove(node)
        kill_session(node)

    def drain(self, node: Node, seconds: float) -> subprocess.Popen[bytes] | None:
        """Tell Ray that a node is going to be taken away, as a cloud does."""
        if (name := node.id) is None:
            return None
        words = ["drain-node", "--address", self.address, "--node-id", name, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message", "taken away", "--deadline-remaining-seconds", str(int(seconds))]
        return subprocess.Popen([str(BIN / "ray"), *words], env=self.environment, **_QUIET)

    def _start(self, *words: str, cable: str | None = None) -> Node:
        command = [str(BIN / "ray"), "start", "--object-store-memory=80000000", "--include-log-monitor=false", *words]
        if cable is not None:
            command = ["ip", "netns", "exec", cable, *command]
        with self.log.open("ab") as log:
            starting = subprocess.Popen(
                command, cwd=REPOSITORY, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        node = Node(starting=starting, cable=cable)
        self._all.append(node)
        return node

    def _network(self, number: int) -> tuple[str, str]:
        """A namespace with a cable to the host -> the name of both, and the address in there."""
        name = f"cx{os.getpid()}-{number}"
        here, there = f"{self._net}.{number}.1", f"{self._net}.{number}.2"
        _ip("netns", "add", name)
        self._namespaces[name] = number
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{here}/24", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "addr", "add", f"{there}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "route", "add", "default", "via", here)
        return name, there


def cut(node: Node) -> None:
    """Pull the cable: nothing goes to or from the node any more, and nobody is told."""
    assert node.cable is not None
    _ip("link", "set", node.cable, "down")


def mend(node: Node) -> None:
    """Plug the cable in again."""
    assert node.cable is not None
    _ip("link", "set", node.cable, "up")


def kill(pid: int) -> bool:
    """SIGKILL -> whether there was a process to kill."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def kill_session(node: Node) -> None:
    """SIGKILL to all processes of a node, the raylet first, so that it starts no others."""
    for _ in range(50):
        found = sorted(processes(node.session)[node.session], key=lambda one: not _is_raylet(one[1]))
        if not found:
            break
        for pid, _ in found:
            kill(pid)
        time.sleep(0.02)
    node.starting.wait()


def actors(nodes: Iterable[Node], *, at: str = "") -> list[int]:
    """The processes of the actors of these nodes; of those that are at a method such as `label`, if one is named."""
    title = f"ray::Actor.{at}" if at else "ray::Actor"
    found = processes(*(node.session for node in nodes))
    return [pid for there in found.values() for pid, words in there if words[0].startswith(title)]


def processes(*sessions: int) -> dict[int, list[tuple[int, list[str]]]]:
    """The living processes of each session with their command lines."""
    found: dict[int, list[tuple[int, list[str]]]] = {session: [] for session in sessions}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) in found and fields[0] not in "ZX":
                words = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
                found[int(fields[3])].append((int(entry.name), words))
    return found


def _is_raylet(words: Sequence[str]) -> bool:
    return words[0].endswith("/raylet")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
