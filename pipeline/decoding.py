"""Records to pixels: in threads, a bounded number ahead, and in processes of their own where that is asked for.

A decoder is C code that is given bytes of unknown origin. In the worker's own process one that crashes, hangs or takes
all memory ends the shard; in a process of its own (`limits.isolate_decoding`) it costs the image, whose reason is then
`crashed`. Each thread uses one process, which goes on from image to image; its limits are of memory, time and cores.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from pipeline import images
from pipeline.config import LimitsConfig
from pipeline.decoding_child import ANSWER, REQUEST, receive
from pipeline.errors import ImageError, RunError
from pipeline.image_headers import announced_size, reduction, upright_size
from pipeline.parallel import Prefetch
from pipeline.records import ImageRecord, Picture, Pixels
from pipeline.stages import Stages

#: The longest that a process may take for an image, and until it is ready, in seconds.
TIME_LIMIT_S, START_LIMIT_S = 60, 60
#: Address space of a decoding process: what it takes to be there, and what the greediest format takes for a pixel
#: (16-bit grey, on its way through wider integers) and for a byte of the file.
BASE_MEMORY, MEMORY_PER_PIXEL, MEMORY_PER_BYTE = 1 << 29, 32, 4

#: What a process inherits of the environment: nothing that could be a secret.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL")
T = TypeVar("T")

_NO_START = "limits.isolate_decoding: a decoding process does not start"


class Decoding:
    """Decodes for one worker. A context manager, cheap until its first image; it can be used from several threads."""

    def __init__(
        self,
        limits: LimitsConfig,
        *,
        threads: int = 4,
        time_limit_s: float = TIME_LIMIT_S,
        memory: int | None = None,
        wanted: Callable[[int, int], tuple[int, int]] | None = None,
        target: str = "pipeline.images:decode",
    ) -> None:
        """Nothing is started yet.

        Args:
            limits: what an image may cost, and whether to decode in processes.
            threads: how many images `stream` decodes at once.
            time_limit_s: for an image, in a process.
            memory: address space of a process in bytes; None derives it from the limits.
            wanted: height and width of an image -> those that a labeler resizes it to; a JPEG that is more than twice
                as large is then decoded at a part of its size. None: nothing is.
            target: `module:function` that decodes in a process, with the signature of `images.decode`.
        """
        self._limits = limits
        self._time_limit_s = time_limit_s
        self._memory = memory or (
            BASE_MEMORY + MEMORY_PER_PIXEL * limits.max_image_pixels + MEMORY_PER_BYTE * limits.max_image_bytes
        )
        self._wanted, self._target = wanted, target
        self._prefetch = Prefetch(threads, "decoding")
        self._lock = threading.Lock()
        self._processes: set[_Process] = set()
        self._idle: list[_Process] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._processes:  # first, so that no thread waits for one
                process.kill()
        self._prefetch.close()
        for process in self._processes:
            process.close()

    def one(self, record: ImageRecord) -> Picture | str:
        """A decoded image, or the reason why there is none.

        Raises:
            RunError: decoding processes do not start.
        """
        if record.error is not None:
            return record.error
        data = record.data
        part = 1 if self._wanted is None else reduction(data, self._wanted)
        pixels = self._decoded(data, part)
        if isinstance(pixels, str):
            return pixels
        height, width = pixels.shape[:2] if part == 1 else upright_size(data, pixels, part)
        return Picture(pixels=pixels, height=height, width=width)

    def stream(
        self,
        records: Iterable[ImageRecord],
        *,
        ahead: int,
        ahead_bytes: int,
        then: Callable[[Picture], T],
        at_end: Callable[[], None] = lambda: None,
        stages: Stages | None = None,
    ) -> Iterator[tuple[ImageRecord, T | str]]:
        """Each record, without its bytes, and what is made of the image, or the reason why there is none; in order.

        Args:
            records: what to decode. Whatever their iterator raises comes through.
            ahead: how many images are held at most, decoded or waiting for that.
            ahead_bytes: about how many bytes these may take, encoded and decoded, together with those of other streams
                of this worker; a single image may always be held.
            then: what is done with an image, in the thread that decoded it.
            at_end: is called when the last record has been read.
            stages: what measures the time of decoding, and that of `then`, which is `prepare`.

        Raises:
            RunError: decoding processes do not start.
        """
        timed = stages or Stages()

        def make(record: ImageRecord) -> tuple[ImageRecord, T | str]:
            with timed("decode"):
                picture = self.one(record)
            if isinstance(picture, str):
                return replace(record, data=b""), picture
            with timed("prepare"):
                return replace(record, data=b""), then(picture)

        return self._prefetch.stream(
            records, make, cost=self._cost, ahead=ahead, ahead_bytes=ahead_bytes, at_end=at_end
        )

    def _cost(self, record: ImageRecord) -> int:
        """Bytes that an image takes, encoded and decoded, by its header; what is too large is not decoded."""
        width, height = announced_size(record.data) or (0, 0)
        pixels = width * height
        return len(record.data) + (3 * pixels if pixels <= self._limits.max_image_pixels else 0)

    def _decoded(self, data: bytes, part: int) -> Pixels | str:
        limits = self._limits
        if limits.isolate_decoding and 0 < len(data) <= limits.max_image_bytes:
            return self._isolated(data, part)
        try:
            return images.decode(
                data, max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels, reduce=part
            )
        except ImageError as refused:
            return str(refused)

    def _isolated(self, data: bytes, part: int) -> Pixels | str:
        """Decode in a process; once more if SIGKILL ended it, which comes from outside: where memory is short, say."""
        for last in (False, True):
            process = self._take()
            try:
                result = process.decode(data, part, self._limits.max_image_pixels, self._time_limit_s)
            except _DiedError as died:
                self._discard(process)
                if last or self._closed or died.args[0] != -signal.SIGKILL:
                    return f"crashed: {_cause(died.args[0], self._time_limit_s)}"
                continue
            with self._lock:
                self._idle.append(process)
            return result
        raise AssertionError

    def _take(self) -> _Process:
        """A process that waits for an image: one that is idle and alive, or a new one."""
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                break
            if process.alive():
                return process
            self._discard(process)
        limits = self._limits
        process = _Process(
            self._target,
            *map(str, (limits.max_image_bytes, limits.max_image_pixels, self._memory, max(1, int(self._time_limit_s)))),
        )
        with self._lock:
            self._processes.add(process)
            if self._closed:
                process.kill()
        process.wait_until_ready()
        return process

    def _discard(self, process: _Process) -> None:
        process.close()
        with self._lock:
            self._processes.discard(process)


class _DiedError(Exception):
    """A process ended, or was ended, over an image. Its argument: the exit status, or None where time was up."""


class _Process:
    """The parent's side of a decoding process."""

    def __init__(self, *arguments: str) -> None:
        self._socket, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = "1"  # each takes address space
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.decoding_child", *arguments],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
            )

    def wait_until_ready(self) -> None:
        """Wait for the process to be ready for its first image.

        Raises:
            RunError: it ended instead, or takes too long.
        """
        assert self._process.stderr is not None
        try:
            self._receive(memoryview(bytearray(ANSWER.size)), time.monotonic() + START_LIMIT_S)
        except TimeoutError:
            raise RunError(f"{_NO_START}: it takes longer than {START_LIMIT_S} s") from None
        except (EOFError, OSError):
            self.kill()
            words = self._process.stderr.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise RunError(f"{_NO_START}: {words or 'it ended without a word'}") from None

    def alive(self) -> bool:
        """Whether it has not ended since its last image."""
        return self._process.poll() is None

    def decode(self, data: bytes, part: int, max_pixels: int, time_limit_s: float) -> Pixels | str:
        """Pixels or reason from the process.

        Raises:
            _DiedError: it ended, or did not answer in time.
        """
        until = time.monotonic() + time_limit_s
        header = bytearray(ANSWER.size)
        try:
            self._socket.settimeout(time_limit_s)
            self._socket.sendall(REQUEST.pack(len(data), part))
            self._socket.sendall(data)
            self._receive(memoryview(header), until)
            done, first, second = ANSWER.unpack(header)
            if not done:
                text = bytearray(first)
                self._receive(memoryview(text), until)
                return text.decode()
            assert first * second <= max_pixels
            pixels = np.empty((first, second, 3), np.uint8)
            self._receive(pixels.data.cast("B"), until)
            return pixels
        except TimeoutError:
            raise _DiedError(None) from None
        except (EOFError, OSError):
            raise _DiedError(self._process.wait()) from None

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._process.kill()

    def close(self) -> None:
        """End it, and give back what it holds."""
        assert self._process.stderr is not None
        self._process.kill()
        self._process.wait()
        self._process.stderr.close()
        self._socket.close()

    def _receive(self, view: memoryview, until: float) -> None:
        self._socket.settimeout(max(0.001, until - time.monotonic()))
        receive(self._socket, view)


def _cause(status: int | None, time_limit_s: float) -> str:
    if status is None:
        return f"no result within {time_limit_s:g} s"
    known = [one.name for one in signal.Signals if one == -status]
    return f"the decoder ended with {known[0] if known else f'exit status {status}'}"
