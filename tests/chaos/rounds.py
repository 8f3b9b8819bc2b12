"""A round: a labeling run, started as a user does, and again whenever it ends before it is done, while things die."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from tests.chaos import nodes as cluster
from tests.chaos.deaths import Deaths
from tests.chaos.drivers import Driver
from tests.chaos.inputs import Drawn
from tests.chaos.nodes import Nodes
from tests.chaos.objects import Objects
from tests.chaos.plans import Event, Plan

TICK_S, LOOK_S, LATE_S = 0.05, 0.25, 10.0
#: How fast the round's clock goes while no worker is at work: something is to die then, too, but most of it later.
IDLE = 0.2


@dataclass(slots=True, kw_only=True)
class Result:
    """How a round went.

    kills: what was done, by kind. missed: what found nobody. ends: how drivers ended, by status. sentences: what they
    said last when they were not done. set_aside, again: shards, as the drivers' logs name them.
    """

    kills: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    sentences: Counter[str] = field(default_factory=Counter)
    set_aside: int = 0
    again: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class Round:
    """A round under way."""

    def __init__(
        self,
        plan: Plan,
        drawn: Drawn,
        nodes: Nodes,
        folder: Path,
        *,
        input: str,
        output: str,
        store: Objects | None,
        commits: Callable[[], Mapping[str, str]],
    ) -> None:
        """`folder` takes the config and the drivers' logs; `input` and `output` are places in storage.

        `commits` lists those of the output, with a text that changes when one of them does.
        """
        self.plan, self.nodes, self.store, self._commits = plan, nodes, store, commits
        self._seen: dict[str, str] = {}
        self.result = Result()
        self._later: list[tuple[float, Callable[[], None]]] = []
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=1))
        config = folder / "label.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "input": drawn.input(input, coco=plan.coco),
                    "output": {"uri": output},
                    "labeler": dict(drawn.settings),
                    "run": {"address": nodes.address, "workers": {"min": 1, "max": 3}, "cpus_per_worker": 1},
                }
            )
        )
        self._log = (folder / "events.log").open("w", buffering=1)
        self._start = time.monotonic()
        command = [sys.executable, "-m", "jobs.label", "--config", str(config)]
        self._drivers = [
            Driver(command, nodes.environment, folder / f"driver-{number}.log") for number in range(plan.drivers)
        ]
        self._waiting: dict[int, float] = {}
        run = None if store is not None else Path(output)
        self._deaths = Deaths(nodes, self._drivers, store, run, self._after)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def run(self, *, patience_s: float = 240.0) -> Result:
        """Let it happen, and then wait, at most so long, for every driver to exit with 0."""
        events = list(self.plan.events)
        clock = looked = 0.0
        peace: float | None = None
        try:
            while not all(driver.done for driver in self._drivers):
                if self.now - looked >= LOOK_S:
                    before, looked = looked, self.now
                    clock += (looked - before) * (1.0 if cluster.actors(self.nodes.alive, at="label") else IDLE)
                    self._look_at_commits()
                    self.nodes.heal()
                if not events and peace is None:
                    peace = self.now
                if peace is not None and self.now - peace > patience_s * self.plan.slow:
                    self.result.faults.append(
                        f"the run did not end within {patience_s * self.plan.slow:.0f} s of peace"
                    )
                    break
                while events and events[0].at <= clock:
                    self._happen(events.pop(0))
                self._do_what_is_due()
                self._look_after_drivers()
                time.sleep(TICK_S)
            self._await_the_late()
        finally:
            for driver in self._drivers:
                driver.kill()
            for _, mend in self._later:
                mend()
            if self.store is not None:
                self.store.wait()
            self.result.seconds = self.now
            self._log.close()
        return self.result

    def _look_at_commits(self) -> None:
        """The first commit of a shard stands for good."""
        for name, text in self._commits().items():
            if self._seen.setdefault(name, text) != text:
                self._seen[name] = text
                self.result.faults.append(f"{name} was changed")

    def _await_the_late(self) -> None:
        """Until all cables are plugged in again, and workers that were given up have written what they had, or died."""
        while self._later:
            self._do_what_is_due()
            time.sleep(TICK_S)
        deadline = self.now + LATE_S * self.plan.slow
        while self.now < deadline and cluster.actors(self.nodes.given_up()):
            time.sleep(LOOK_S)
        self._look_at_commits()

    def _do_what_is_due(self) -> None:
        for due in [one for one in self._later if one[0] <= self.now]:
            self._later.remove(due)
            due[1]()

    def _look_after_drivers(self) -> None:
        for number, driver in enumerate(self._drivers):
            if ended := driver.ended():
                self._judge(number, *ended)
                if not driver.done:
                    self._waiting[number] = self.now + 0.5
            elif number in self._waiting and self._waiting[number] <= self.now:
                del self._waiting[number]
                driver.start()

    def _judge(self, number: int, status: str, said: str) -> None:
        """A driver may end done, or not done with a sentence; but not with a traceback, and not by itself."""
        last = said.strip().splitlines()[-1] if said.strip() else ""
        self._note(f"driver {number} ended with {status}: {last}")
        self.result.ends[status] += 1
        self.result.set_aside += len(re.findall(r" set aside: ", said))
        self.result.again += len(re.findall(r" is (?:tried|labelled) again$", said, re.MULTILINE))
        if "Traceback (most recent call last)" in said:
            self.result.faults.append(f"driver {number} shows a traceback: {last}")
        if status == "1":
            self.result.sentences[re.sub(r"[0-9a-f]{8,}|/\S+|\d+", "*", last)] += 1
        elif status not in ("0", "killed"):
            self.result.faults.append(f"driver {number} ended with {status}: {last}")

    def _happen(self, event: Event) -> None:
        met = getattr(self._deaths, event.kind)(event)
        if met:
            self.result.kills[event.kind] += len(met)
        else:
            self.result.missed[event.kind] += 1
        self._note(f"{event.kind}: {', '.join(met) or 'nobody there'}")

    def _note(self, text: str) -> None:
        self._log.write(f"{self.now:8.2f} {text}\n")

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        self._later.append((self.now + seconds * self.plan.slow, do))
