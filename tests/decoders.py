"""A decoder that does what hostile bytes might make one do; `Decoding(target="tests.decoders:decode")` in tests."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from pipeline import images
from pipeline.records import Pixels


def decode(data: bytes, *, max_bytes: int, max_pixels: int, reduce: int) -> Pixels:
    """`images.decode`, but for images that begin with the name of a misdeed."""
    match data.partition(b" ")[0]:
        case b"abort":
            os.abort()
        case b"segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"exit":
            os._exit(3)
        case b"hang":
            signal.alarm(0)  # whatever it can do against the process's own alarm
            while True:
                time.sleep(3600)
        case b"linger":  # as a decoder that no alarm was taken from; the rest names a pipe that says when it began
            Path(data.partition(b" ")[2].decode()).write_bytes(b"here")
            while True:
                time.sleep(3600)
        case b"greed":
            bytearray(1 << 40)
        case b"raise":
            raise SystemError("an extension returned NULL without an exception")
        case b"environment":
            from pipeline.errors import ImageError

            raise ImageError(f"undecodable: {sorted(os.environ)}")
        case b"chatter":
            for _ in range(4000):
                os.write(1, b"x" * 100)
                os.write(2, b"x" * 100)
            data = data.partition(b" ")[2]
    return images.decode(data, max_bytes=max_bytes, max_pixels=max_pixels, reduce=reduce)


def absent() -> None:
    """What a child cannot use: it cannot be loaded, on purpose."""


if sys.argv[1:2] == ["tests.decoders:absent"]:
    raise ImportError("no decoder here")
