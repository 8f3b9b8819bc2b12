"""Kills whatever a labeling run consists of, round after round, and counts what is lost: `make chaos N=20 SEED=7`.

    python -m tests.chaos --rounds 20 --seed 7 --real

Each round is a run on a Ray cluster of this machine, on a disk or on an S3 server, which is started again until it is
done, and then judged from outside. A line a round; FOLDER/report.json has all of it. Exits with 1 if anything was lost,
doubled, or said in a traceback; such a round's folder stays. A seed draws the same deaths, not the same victims.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import seaweed
from tests.chaos import inputs, plans
from tests.chaos.inputs import Drawn
from tests.chaos.nodes import REPOSITORY, Nodes
from tests.chaos.objects import Objects
from tests.chaos.outside import Found, Row, judge, local_commits, told
from tests.chaos.plans import MEAN_S, Plan
from tests.chaos.rounds import Result, Round

REAL_EVERY, SLOW = 10, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What rounds label: an input with the rows of its undisturbed run."""

    drawn: Drawn
    rows: Mapping[str, Row]


class Harness:
    """The cluster, the storage, and the inputs, for all rounds."""

    def __init__(self, folder: Path, nodes: Nodes, objects: Objects | None) -> None:
        self.folder, self.nodes, self.objects = folder, nodes, objects
        self._subjects: dict[str, Subject] = {}

    def subject(self, name: str, seed: int) -> Subject:
        """Draw the images and label them in peace, once.

        Raises:
            RuntimeError: not even that goes well.
        """
        if name not in self._subjects:
            drawn = getattr(inputs, name)(self.folder / f"input-{name}", seed=seed)
            plan = Plan(number=-1, seed=seed, storage="disk", drivers=1, coco=False, slow=1.0, events=())
            result, found, run = self.round(plan, drawn, None)
            if result.faults or found.faults:
                raise RuntimeError(f"the undisturbed run {run} went wrong: {[*result.faults, *found.faults]}")
            self._subjects[name] = Subject(drawn=drawn, rows=found.rows)
        return self._subjects[name]

    def round(self, plan: Plan, drawn: Drawn, undisturbed: Mapping[str, Row] | None) -> tuple[Result, Found, Path]:
        """One round -> what happened, what lies there afterwards, and where."""
        name = "undisturbed-" + drawn.folder.name if plan.number < 0 else f"round-{plan.number:03}"
        folder = self.folder / name
        isolated = 1 if plan.storage == "disk" else 0
        self.nodes.fleet(plain=3 - isolated if self.nodes.can_isolate else 3, isolated=isolated)
        objects = self.objects if plan.storage == "s3" else None
        if objects is None:
            source, output = str(drawn.folder), str(folder / "run")
        else:
            source, output = objects.upload(drawn.folder, drawn.folder.name), f"{objects.uri}/{name}"

        def commits() -> Mapping[str, str]:
            return local_commits(folder / "run") if objects is None else objects.etags(f"{name}/commits")

        one = Round(plan, drawn, self.nodes, folder, input=source, output=output, store=objects, commits=commits)
        result = one.run()
        result.faults += told(output, drawn, self.nodes.environment, folder)
        if objects is not None:
            objects.download(name, folder / "run")
        return result, judge(folder / "run", drawn, undisturbed), folder


def line(plan: Plan, result: Result, found: Found, faults: Sequence[str]) -> dict[str, Any]:
    """A round for the report."""
    return {
        "round": plan.number,
        "seed": plan.seed,
        "storage": plan.storage,
        "model": "real" if plan.slow > 1 else "light",
        "drivers": plan.drivers,
        "kills": dict(sorted(result.kills.items())),
        "missed": dict(sorted(result.missed.items())),
        "ends": dict(sorted(result.ends.items())),
        "sentences": dict(result.sentences),
        "seconds": round(result.seconds, 1),
        "images": len(found.rows),
        "set_aside": result.set_aside,
        "again": result.again,
        "orphans": found.orphans,
        "leftovers": found.leftovers,
        "lost": found.lost,
        "doubled": found.doubled,
        "faults": list(faults),
    }


def shown(one: Mapping[str, Any]) -> str:
    """A round on one line."""

    def counts(name: str) -> str:
        return " ".join(f"{key} {value}" for key, value in one[name].items()) or "nothing"

    return (
        f"round {one['round']:>3} seed {one['seed']} {one['storage']:4} {one['model']:5} {one['drivers']} driver(s): "
        f"killed {counts('kills')}; drivers ended {counts('ends')}; {one['seconds']:.0f} s, "
        f"{one['again']} shards again, {one['set_aside']} set aside, {one['orphans']} orphans; "
        f"{one['lost']} lost, {one['doubled']} doubled: {'FAULTY' if one['faults'] else 'sound'}"
    )


def summary(lines: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """All rounds for the report."""
    kills: Counter[str] = Counter()
    for one in lines:
        kills.update(one["kills"])
    names = ("lost", "doubled", "orphans", "leftovers", "again", "set_aside")
    return {
        "seed": seed,
        "rounds": len(lines),
        "kills": kills.total(),
        "kills_by_kind": dict(sorted(kills.items())),
        **{name: sum(one[name] for one in lines) for name in names},
        "faulty_rounds": [one["round"] for one in lines if one["faults"]],
        "seconds": round(sum(one["seconds"] for one in lines)),
        "each": list(lines),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the number of the first round, to draw that one again")
    parser.add_argument("--seed", type=int, help="draws one and prints it, if there is none")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long things die in a round")
    parser.add_argument("--storage", choices=("disk", "s3", "both"), default="both")
    parser.add_argument("--real", action="store_true", help="every tenth round with the demo's model")
    parser.add_argument("--keep", action="store_true", help="keep the folders of sound rounds, too")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/chaos")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    folder = options.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"seed {seed}", flush=True)
    lines: list[dict[str, Any]] = []
    with ExitStack() as stack:
        objects = None
        if options.storage != "disk" and seaweed.binary() is None:
            print(f"no round is on S3: {seaweed.MISSING}", flush=True)
        elif options.storage != "disk":
            objects = Objects(folder / "seaweed")
            stack.callback(objects.close)
        nodes = stack.enter_context(Nodes(objects.environment if objects else {}, can_isolate=True))
        if not nodes.can_isolate:
            print("no node is cut off, since that takes root", flush=True)
        harness = Harness(folder, nodes, objects)
        for number in range(options.first, options.first + options.rounds):
            on_s3 = objects is not None and (options.storage == "s3" or number % 2 == 1)
            real = options.real and number % REAL_EVERY == REAL_EVERY - 2
            subject = harness.subject("real" if real else "light", seed)
            kinds = (
                set(MEAN_S) - ({"cut", "upload"} if on_s3 else {"store"}) - (set() if nodes.can_isolate else {"cut"})
            )
            plan = plans.draw(
                number,
                seed,
                storage="s3" if on_s3 else "disk",
                kinds=sorted(kinds),
                seconds=options.seconds,
                slow=SLOW if real else 1.0,
            )
            result, found, place = harness.round(plan, subject.drawn, subject.rows)
            faults = [*result.faults, *found.faults]
            lines.append(line(plan, result, found, faults))
            print(shown(lines[-1]), *(f"    {fault}" for fault in faults), sep="\n", flush=True)
            if faults:
                print(f"    see {place}", flush=True)
            (folder / "report.json").write_text(json.dumps(summary(lines, seed), indent=1))
        for one in lines:  # a worker that had been given up may have written since
            place = folder / f"round-{one['round']:03}"
            if one["storage"] == "disk" and not one["faults"]:
                subject = harness.subject("real" if one["model"] == "real" else "light", seed)
                one["faults"] += judge(place / "run", subject.drawn, subject.rows).faults
            if not one["faults"] and not options.keep:
                shutil.rmtree(place)
    found_all = summary(lines, seed)
    (folder / "report.json").write_text(json.dumps(found_all, indent=1))
    print(json.dumps({key: value for key, value in found_all.items() if key != "each"}))
    return 1 if found_all["faulty_rounds"] else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing of the cluster stays behind
    sys.exit(main())
