"""A proxy that stands between a client and an HTTP server and spoils the traffic: by a script, or by dice.

    python -m tests.faults --target http://127.0.0.1:8333 --seed 7 --rate 0.05

Bytes go through as they are, the Host header too, so signatures of S3 requests stay valid.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

#: What dice can come up with, in the words of `Fault.kind`; the last three are answers of the store.
KINDS = (
    "reset",
    "truncate",
    "stall",
    "slow",
    "lost",
    "cut",
    "hangup",
    "SlowDown",
    "InternalError",
    "ExpiredToken",
)
_STATUS = {
    "SlowDown": "503 Service Unavailable",
    "InternalError": "500 Internal Server Error",
    "ExpiredToken": "400 Bad Request",
}
_BLOCK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, and what was not read yet is lost


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes:
        kind: `reset`, `truncate` (an orderly end) or `stall` the answer, or let it come `slow`ly, or drop all of it
            (`lost`; the server has done what was asked), or end the connection behind it (`hangup`); `cut` the request
            in the middle of its body; `answer` without asking the server.
        method: of requests that it befalls; "" for all.
        part: what stands in the target (path and query) of requests that it befalls.
        after: bytes of the answer, its head included, that come through first; below 1, a share of the answer.
        delay_s: how long `slow` waits.
        answer: of the kind `answer`.
        meanwhile: is called when the fault happens, in a thread; the client waits.
        name: what it is counted as; its kind, if empty.
    """

    kind: str
    method: str = ""
    part: str = ""
    after: float = 0
    delay_s: float = 0.0
    answer: bytes = b""
    meanwhile: Callable[[], object] | None = None
    name: str = ""


class Script(list[Fault]):
    """Faults that happen one after the other, each to the next request that it fits."""

    def choose(self, method: str, target: str) -> Fault | None:
        """The first fault, if it fits; it happens once."""
        fits = self and self[0].method in ("", method) and self[0].part in target
        return self.pop(0) if fits else None


class Dice:
    """Faults that happen by chance, the same ones for the same requests in the same order.

    Args:
        seed: of the dice.
        rates: how often each kind happens, as a share of the requests.
        delay_s: how long `slow` waits.
    """

    def __init__(self, seed: int, rates: Mapping[str, float], *, delay_s: float = 0.3) -> None:
        unknown = rates.keys() - set(KINDS)
        if unknown or sum(rates.values()) > 1:
            raise ValueError(f"the rates of {', '.join(KINDS)} are shares that sum up to 1 at most; got {dict(rates)}")
        self._random, self._rates, self._delay_s = random.Random(seed), dict(rates), delay_s

    @classmethod
    def evenly(cls, seed: int, rate: float, *, delay_s: float = 0.3) -> Dice:
        """All kinds alike, and all together at a rate."""
        return cls(seed, dict.fromkeys(KINDS, rate / len(KINDS)), delay_s=delay_s)

    def choose(self, method: str, target: str) -> Fault | None:
        """What happens to a request."""
        del method, target
        kinds = [*self._rates, None]
        weights = [*self._rates.values(), 1 - sum(self._rates.values())]
        kind, after = self._random.choices(kinds, weights)[0], self._random.random()
        return None if kind is None else fault_of(kind, after=after, delay_s=self._delay_s)


def fault_of(kind: str, method: str = "", part: str = "", after: float = 0.0, delay_s: float = 0.3) -> Fault:
    """A fault of one of the `KINDS`; see `Fault`."""
    if kind in _STATUS:
        return Fault("answer", method, part, answer=answer(_STATUS[kind], kind), name=kind)
    return Fault(kind, method, part, after, delay_s)


def answer(status: str, code: str) -> bytes:
    """An answer of a store that refuses: its status line, and the code in its XML."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status.encode(), len(body)) + body


class Proxy:
    """A proxy in a thread of its own, from `start` to `close`.

    Attributes:
        url: where it listens.
        faults: who chooses what happens to a request.
        requests: the heads of all requests, in the order of their arrival.
        counts: what it did, by kind.
    """

    def __init__(self, target: str, faults: Script | Dice, *, port: int = 0) -> None:
        parts = urlsplit(target)
        if parts.scheme != "http" or parts.port is None:
            raise ValueError(f"{target} is no URL such as http://127.0.0.1:8333")
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults = faults
        self.requests: list[str] = []
        self.counts: Counter[str] = Counter()
        self._ready = threading.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="faults", daemon=True)

    def start(self) -> Proxy:
        """Begin to serve."""
        self._thread.start()
        self._ready.wait()
        return self

    def close(self) -> None:
        """End all connections and the thread."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def __enter__(self) -> Proxy:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, sock=self._listener, limit=1 << 20)
        self._ready.set()
        await self._over.wait()
        server.close()
        while self._connections:  # one that is being set up right now joins them late
            for connection in self._connections:
                connection.cancel()
            await asyncio.wait(self._connections)
        for _ in range(3):  # what is closed is so in the next rounds of the loop
            await asyncio.sleep(0)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection: the requests one way, the answers the other, until one of the two is over."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        writers, ways, now = [to_client], [], _Exchange()
        try:
            server, to_server = await asyncio.open_connection(*self._target)
            writers.append(to_server)
            ways = [
                asyncio.create_task(self._requests(now, client, to_client, to_server)),
                asyncio.create_task(self._answers(now, server, to_client)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):  # the server is away, or `close` was called
            pass
        finally:
            for way in ways:
                way.cancel()
            for writer in writers:
                _end(writer, reset=now.reset or len(writers) == 1)
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(
        self,
        now: _Exchange,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        to_server: asyncio.StreamWriter,
    ) -> None:
        while head := await _head(client):
            text = head.decode("latin-1")
            method, target, _ = text.split(" ", 2)
            length, expects = _length(text), "100-continue" in text.lower()
            if length is None:
                assert "\r\ntransfer-encoding:" not in text.lower(), "only bodies of a known length are understood"
                length = 0
            self.requests.append(text)
            fault = self.faults.choose(method, target)
            now.begin(method, fault)
            if fault is not None and fault.kind == "answer":
                if not expects:
                    await client.readexactly(length)
                await self._happen(fault)
                to_client.write(fault.answer)
                await to_client.drain()
                return
            to_server.write(head)
            if fault is not None and fault.kind == "cut":
                await _copy(client, to_server, int(length * fault.after))
                await self._happen(fault)
                now.reset = True
                return
            await _copy(client, to_server, length)

    async def _answers(self, now: _Exchange, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while data := await server.read(_BLOCK):
            while data.startswith(b"HTTP/1.1 100"):  # go ahead with the body, which some servers say twice
                begin, end, data = data.partition(b"\r\n\r\n")
                to_client.write(begin + end)
            if now.fault is not None and now.fault.kind == "slow" and data:
                await self._happen(now.fault)
                await asyncio.sleep(now.fault.delay_s)
                now.fault = None
            through, spoiled = now.take(data)
            to_client.write(through)
            await to_client.drain()
            if now.fault is not None and spoiled:
                await self._happen(now.fault)
                now.reset = now.fault.kind == "reset"
                if now.fault.kind == "stall":
                    await asyncio.Event().wait()  # until the client hangs up
                return

    async def _happen(self, fault: Fault) -> None:
        self.counts[fault.name or fault.kind] += 1
        if fault.meanwhile is not None:
            await asyncio.to_thread(fault.meanwhile)


@dataclass
class _Exchange:
    """The request that is under way on a connection, and what becomes of its answer."""

    method: str = ""
    fault: Fault | None = None
    left: int | None = None  # bytes of the answer that may still come through; None before its first
    reset: bool = False

    def begin(self, method: str, fault: Fault | None) -> None:
        self.method, self.fault, self.left = method, fault, None

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What comes through of a piece of the answer, and whether the fault happens behind it."""
        if self.fault is None or not data:
            return data, False
        if self.left is None:
            self.left = self._allowed(self.fault, data)
        through = data[: self.left]
        self.left -= len(through)
        return through, self.left == 0

    def _allowed(self, fault: Fault, first: bytes) -> int:
        if fault.kind == "lost":
            return 0
        if fault.after >= 1:
            return int(fault.after)
        head, end, body = first.partition(b"\r\n\r\n")
        length = 0 if self.method == "HEAD" else _length(head.decode("latin-1"))
        whole = len(head) + len(end) + (len(body) if length is None else length)
        return whole if fault.kind == "hangup" else int(fault.after * whole)


async def _head(stream: asyncio.StreamReader) -> bytes:
    """The head of the next request; nothing where the client hangs up."""
    try:
        return await stream.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


def _end(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Hang up: with what was written, or at once, so that the other side sees a reset."""
    if not reset:
        writer.close()
        return
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _copy(stream: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
    """So many bytes from one to the other, or what there is of them."""
    while count > 0 and (data := await stream.read(min(count, _BLOCK))):
        writer.write(data)
        await writer.drain()
        count -= len(data)


def _length(head: str) -> int | None:
    """What the head of a request or an answer says of the length of its body."""
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return None


def main() -> None:
    """Serve until interrupted, then say what was done."""
    parser = argparse.ArgumentParser(description="A proxy that spoils the traffic to an HTTP server.")
    parser.add_argument("--target", required=True, help="the server, as http://127.0.0.1:8333")
    parser.add_argument("--seed", type=int, default=0, help="of the dice")
    parser.add_argument("--rate", type=float, default=0.05, help="share of the requests that are spoiled")
    parser.add_argument("--port", type=int, default=0, help="where to listen; a free port if left out")
    options = parser.parse_args()
    with Proxy(options.target, Dice.evenly(options.seed, options.rate), port=options.port) as proxy:
        print(proxy.url, flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        print(f"{len(proxy.requests)} requests, of which {dict(sorted(proxy.counts.items()))}", flush=True)


if __name__ == "__main__":
    main()
