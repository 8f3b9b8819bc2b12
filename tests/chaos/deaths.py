"""How each kind of death comes about: to whom among those at hand, and who takes the place."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.chaos import nodes as cluster
from tests.chaos.drivers import Driver
from tests.chaos.nodes import Node, Nodes
from tests.chaos.objects import Objects
from tests.chaos.plans import Event

#: A drained node has so long to leave, and is killed after twice as long.
NOTICE_S = 4.0
#: The share of the workers that die whatever they are at; the others die at work. Three deaths at the start end a run.
STARTING = 0.15
#: How long a file is waited for that is to be somebody's last one.
UPLOAD_S, GLANCE_S = 2.0, 0.0005
_WATCHED = ("labels", "coco", "commits")


class Deaths:
    """What can be done to a run. Each method is named by its kind, and tells who was met: nobody, if none was there."""

    def __init__(
        self,
        nodes: Nodes,
        drivers: Sequence[Driver],
        store: Objects | None,
        run: Path | None,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        """`run`: its folder, where it is on disk. `later` has something done after some seconds."""
        self._nodes, self._drivers, self._objects, self._run, self._later = nodes, drivers, store, run, later

    def worker(self, event: Event) -> list[str]:
        starting_too = event.pick < STARTING
        there = cluster.actors(self._nodes.alive, at="" if starting_too else "label")
        pick = event.pick / STARTING if starting_too else (event.pick - STARTING) / (1 - STARTING)
        return _killed(there[int(pick * len(there)) :][:1])

    def upload(self, event: Event) -> list[str]:
        if self._run is None:
            return []
        folder, there = self._run / _WATCHED[int(event.pick * len(_WATCHED))], cluster.actors(self._nodes.alive)
        before, deadline = _files(folder), time.monotonic() + UPLOAD_S
        while there and time.monotonic() < deadline:
            if _files(folder) > before:
                return _killed(there)
            time.sleep(GLANCE_S)
        return []

    def driver(self, event: Event) -> list[str]:
        number = int(event.pick * len(self._drivers))
        return [f"driver {number}"] if self._drivers[number].kill() else []

    def raylet(self, event: Event) -> list[str]:
        node = self._at_hand(event.pick)
        met = _killed([node.raylet]) if node is not None and node.raylet else []
        if node is not None and met:
            self._replace(node)
        return met

    def node(self, event: Event) -> list[str]:
        node = self._at_hand(event.pick)
        if node is None:
            return []
        self._replace(node)
        cluster.kill_session(node)
        return [str(node)]

    def drain(self, event: Event) -> list[str]:
        node = self._at_hand(event.pick)
        if node is None or not self._nodes.drain(node, NOTICE_S):
            return []
        self._replace(node)
        self._later(2 * NOTICE_S, lambda: cluster.kill_session(node))
        return [str(node)]

    def cut(self, event: Event) -> list[str]:
        node = self._at_hand(event.pick, isolated=True)
        if node is None:
            return []
        cluster.cut(node)
        self._replace(node)
        self._later(event.lasts, lambda: cluster.mend(node))
        return [f"{node} for {event.lasts:.0f} s"]

    def stall(self, event: Event) -> list[str]:
        node = self._at_hand(event.pick)
        if node is None or (pid := node.raylet) is None:
            return []
        os.kill(pid, signal.SIGSTOP)
        self._replace(node)

        def go_on() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        self._later(event.lasts, go_on)
        return [f"{node} for {event.lasts:.0f} s"]

    def store(self, event: Event) -> list[str]:
        met = self._objects is not None and self._objects.interrupt(event.lasts)
        return [f"the server for {event.lasts:.1f} s"] if met else []

    def _at_hand(self, pick: float, *, isolated: bool = False) -> Node | None:
        """A node that is well, as long as there is another one."""
        well = self._nodes.well()
        some = [node for node in well if not isolated or node.cable]
        return some[int(pick * len(some))] if some and len(well) > 1 else None

    def _replace(self, node: Node) -> None:
        """Count no more on a node, and let another one join. If it goes on all the same, so much the worse."""
        self._nodes.alive.remove(node)
        self._nodes.join(isolated=node.cable is not None)


def _killed(pids: Sequence[int]) -> list[str]:
    return [f"process {pid}" for pid in pids if cluster.kill(pid)]


def _files(folder: Path) -> set[str]:
    """The finished files in a folder and in those below."""
    with suppress(OSError):  # it is not there yet
        return {name for _, _, names in os.walk(folder) for name in names if not name.startswith(".")}
    return set()
