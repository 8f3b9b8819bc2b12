"""Look the packages of lock files up among known vulnerabilities, by pip-audit: at PyPI, or else at OSV.

Exit status: 0 none is known that a newer version mends; 1 one is, or the auditor failed; 75 not every package could be
looked up.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SOUND, HOLES, NOT_ASKED = 0, 1, 75  # the last one as EX_TEMPFAIL of sysexits.h
_TIMEOUT_S = 600
#: What stands in the last words of pip-audit where a service could not be reached.
_NETWORK = re.compile(r"requests\.exceptions|urllib3\.exceptions|ServiceError|[Cc]ould not connect|[Tt]imed out")

#: Vulnerabilities that have to stay although there is a newer version, by their id, each with the reason.
ACCEPTED: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, order=True)
class Hole:
    """A known vulnerability of a package; no `fixed` versions where none is known to be without it."""

    package: str
    id: str
    fixed: tuple[str, ...]
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = f"{self.id} ({', '.join(self.also)})" if self.also else self.id
        return f"{self.package}: {names}, " + (f"fixed in {', '.join(self.fixed)}" if self.fixed else "no fix is known")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service knows: the holes, and the packages that it could not say anything about, as `name version`."""

    holes: frozenset[Hole]
    unknown: frozenset[str]


def read(report: Mapping[str, Any]) -> Answer:
    """What a report of pip-audit, its JSON, says."""
    holes, unknown = set(), set()
    for package in report["dependencies"]:
        if "skip_reason" in package:
            unknown.add(package["name"])
        for hole in package.get("vulns", ()):
            name = f"{package['name']} {package['version']}"
            holes.add(Hole(name, hole["id"], tuple(hole["fix_versions"]), tuple(sorted(hole["aliases"]))))
    return Answer(frozenset(holes), frozenset(unknown))


def judge(holes: Iterable[Hole], unknown: Iterable[str] | None, accepted: Mapping[str, str]) -> tuple[int, list[str]]:
    """The exit status and what to say. `unknown` is None where no service answered."""
    lines, code = [], SOUND
    for hole in sorted(holes):
        reason = next((accepted[id] for id in (hole.id, *hole.also) if id in accepted), None)
        if hole.fixed and reason is None:
            code = HOLES
            lines.append(f"error: {hole}")
        else:
            lines.append(f"note: {hole}{f'; accepted, as {reason}' if reason else ''}")
    if unknown is None:
        lines.append("warning: NOT AUDITED: neither PyPI nor OSV answered")
    elif names := sorted(unknown):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        lines.append(f"warning: NOT AUDITED: {len(names)} packages that no service could be asked about: {shown}")
    elif code == SOUND:
        lines.append("no vulnerability is known that a newer version mends")
    return (NOT_ASKED if code == SOUND and (unknown is None or unknown) else code), lines


def ask(locks: Sequence[str], *service: str) -> Answer | None:
    """What a service says of all lock files, which may pin different versions of a package; None: no answer.

    Raises:
        RuntimeError: pip-audit failed for another reason, such as a lock file that it cannot read.
    """
    holes: set[Hole] = set()
    unknown: set[str] = set()
    for lock in locks:
        answer = _ask(lock, *service)
        if answer is None:
            return None
        holes |= answer.holes
        unknown |= answer.unknown
    return Answer(frozenset(holes), frozenset(unknown))


def _ask(lock: str, *service: str) -> Answer | None:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    done = subprocess.run(
        [*command, "--format", "json", "--vulnerability-service", *service, "--requirement", lock],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    try:
        return read(json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        if not _NETWORK.search(done.stderr):
            raise RuntimeError(f"pip-audit failed: {last}") from None
        print(f"warning: {service[0]} does not answer: {last}", file=sys.stderr)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(description="Look locked packages up among known vulnerabilities.")
    parser.add_argument("--osv-url", metavar="URL", help="ask this mirror of OSV's query service, and no other")
    parser.add_argument("locks", nargs="+", metavar="LOCK")
    options = parser.parse_args(argv)
    services = [("osv", "--osv-url", options.osv_url)] if options.osv_url else [("pypi",), ("osv",)]
    holes: set[Hole] = set()
    unknown: frozenset[str] | None = None
    for service in services:
        try:
            answer = ask(options.locks, *service)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return HOLES
        if answer is not None:
            holes |= answer.holes
            unknown = answer.unknown if unknown is None else unknown & answer.unknown
        if unknown is not None and not unknown:
            break
    code, lines = judge(holes, unknown, ACCEPTED)
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
