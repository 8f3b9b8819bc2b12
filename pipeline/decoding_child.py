"""What runs in a decoding process: encoded images in, pixels or a reason out, until its parent is gone.

It is started as `python -m pipeline.decoding_child module:function max_bytes max_pixels memory seconds`, with one end
of a socket as its standard input, and imports little, since it has to start quickly.

    request    REQUEST: how many bytes follow, and at which part of its size to decode them; the encoded image
    answer     ANSWER: done, height, width;          then the pixels, height * width * 3 bytes
               ANSWER: not done, length of the text, 0;    then the text, `reason: detail`

At its start it answers once with nothing, which says that it is ready.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence

from pipeline.errors import ImageError
from pipeline.records import Pixels

REQUEST = struct.Struct("<QB")
ANSWER = struct.Struct("<?II")
READY = ANSWER.pack(False, 0, 0)


def receive(connection: socket.socket, view: memoryview) -> None:
    """Fill a buffer.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the socket's timeout passed.
    """
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]


def main(arguments: Sequence[str]) -> int:
    """Serve until the other side is gone."""
    target, max_bytes, max_pixels, memory, seconds = arguments
    module, _, name = target.partition(":")
    decode = getattr(importlib.import_module(module), name)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, int(memory))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent to stop
    with socket.socket(fileno=os.dup(0)) as connection, contextlib.suppress(EOFError, ConnectionError):
        connection.sendall(READY)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 2)  # until now, standard error was for what kept it from starting
        while True:
            _serve(connection, decode, int(max_bytes), int(max_pixels), int(seconds))
    return 0


def _limit(kind: int, value: int) -> None:
    """Set a limit of this process, where there is no stricter one already."""
    _, hard = resource.getrlimit(kind)
    value = min(value, sys.maxsize) if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _serve(
    connection: socket.socket, decode: Callable[..., Pixels], max_bytes: int, max_pixels: int, seconds: int
) -> None:
    """One image. The alarm is for a process whose parent, which watches the time, is gone."""
    header = bytearray(REQUEST.size)
    receive(connection, memoryview(header))
    count, reduce = REQUEST.unpack(header)
    data = bytearray(count)
    receive(connection, memoryview(data))
    signal.alarm(2 * seconds)
    try:
        pixels = decode(bytes(data), max_bytes=max_bytes, max_pixels=max_pixels, reduce=reduce)
    except (ImageError, MemoryError) as error:
        reason = str(error) if isinstance(error, ImageError) else "crashed: the decoder ran out of memory"
        text = reason.encode("utf-8", "backslashreplace")
        connection.sendall(ANSWER.pack(False, len(text), 0) + text)
    else:
        height, width, _ = pixels.shape
        connection.sendall(ANSWER.pack(True, height, width))
        connection.sendall(pixels.data.cast("B"))
    signal.alarm(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
