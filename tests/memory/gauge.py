"""What a process holds, by the kernel's account and by those of its allocators. Linux with glibc only."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a process holds at a moment; sizes in bytes.

    rss: resident. anonymous: the part of it that is no file. peak: the highest rss since the last reading. allocated:
    what malloc and Arrow have given out and not taken back, which tells a leak from free memory that an allocator
    keeps. blocks: small objects of Python, which come from neither. files: open descriptors.
    """

    rss: int
    anonymous: int
    peak: int
    allocated: int
    blocks: int
    files: int
    threads: int


def read() -> Reading:
    """This process now; its `peak` starts anew."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")

    def size(key: str) -> int:
        return int(status[key].split()[0]) << 10

    return Reading(
        rss=size("VmRSS"),
        anonymous=size("RssAnon"),
        peak=size("VmHWM"),
        allocated=_malloced() + pa.total_allocated_bytes(),
        blocks=sys.getallocatedblocks(),
        files=len(list(Path("/proc/self/fd").iterdir())) - 1,
        threads=int(status["Threads"]),
    )


def resident(pid: int) -> int:
    """The resident size of another process in bytes.

    Raises:
        OSError: it is no more.
    """
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _malloced() -> int:
    info = _mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _MallInfo
_PAGE = ctypes.CDLL(None).getpagesize()
