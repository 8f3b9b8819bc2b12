"""Records to pixels: order, bounds, and decoders that crash, hang or take too much."""

from __future__ import annotations

import functools
import gc
import io
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.label import LimitsConfig
from pipeline.decoding import Decoding
from pipeline.errors import RunError, ShardError
from pipeline.records import ImageRecord, Picture
from tests.refusals import REPOSITORY

PLENTY = 10**9
ISOLATED = LimitsConfig(isolate_decoding=True)


@functools.cache
def png(number: int, width: int = 8, height: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (number, 0, 0)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def record(data: bytes, key: str = "key") -> ImageRecord:
    return ImageRecord(key=key, uri="s3://bucket/in.tar", data=data)


def numbered(count: int, **size: int) -> Iterator[ImageRecord]:
    return (record(png(number, **size), str(number)) for number in range(count))


def unchanged(picture: Picture) -> Picture:
    return picture


def number(picture: Picture | str) -> int:
    assert not isinstance(picture, str), picture
    return int(picture.pixels[0, 0, 0])


def all_children() -> set[int]:
    """Of all threads of this process."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split() if pid}


@pytest.fixture(params=[False, True], ids=["in threads", "in processes"])
def limits(request: pytest.FixtureRequest) -> LimitsConfig:
    return LimitsConfig(isolate_decoding=request.param, max_image_pixels=10**6, max_image_bytes=10**6)


@pytest.fixture
def hostile() -> Iterator[Decoding]:
    """Decodes in processes, with a decoder that does what an image tells it."""
    with Decoding(ISOLATED, target="tests.decoders:decode") as decoding:
        yield decoding


def test_images_come_in_order_and_without_their_bytes(limits: LimitsConfig) -> None:
    """Masks on the neighbour's image; or a batch that holds encoded and decoded images at once."""
    with Decoding(limits) as decoding:
        found = list(decoding.stream(numbered(30), ahead=7, ahead_bytes=PLENTY, then=unchanged))
    assert [(one.key, number(pixels)) for one, pixels in found] == [(str(n), n) for n in range(30)]
    assert {one.data for one, _ in found} == {b""}
    assert {one.uri for one, _ in found} == {"s3://bucket/in.tar"}
    assert all(not isinstance(pixels, str) and pixels.pixels.flags.writeable for _, pixels in found)


def test_both_ways_say_the_same(limits: LimitsConfig) -> None:
    """Rows that depend on where the decoding was done, so that a resumed run disagrees with itself."""
    given = [
        ImageRecord(key="0", uri="x", error="missing: s3://bucket/0.jpg"),
        record(b""),
        record(b"<html>"),
        record(png(1)[:-30]),
        record(png(1, 2000, 1000)),
        record(bytes(10**6 + 1)),
        record("\udcff".encode("utf-8", "surrogateescape") + b"\xff\n"),
    ]
    with Decoding(limits) as decoding:
        reasons = [decoding.one(one) for one in given]
        assert [pixels for _, pixels in decoding.stream(given, ahead=3, ahead_bytes=PLENTY, then=unchanged)] == reasons
    assert reasons == [
        "missing: s3://bucket/0.jpg",
        "empty: 0 bytes",
        "not_an_image: the bytes begin with b'<html>'; accepted are JPEG, PNG, WebP, TIFF, BMP",
        "truncated: the PNG data end before the image does",
        "too_large: 2000x1000 is 2000000 pixels, over limits.max_image_pixels = 1000000",
        "too_large: 1000001 bytes, over limits.max_image_bytes = 1000000",
        r"not_an_image: the bytes begin with b'\xff\xff\n'; accepted are JPEG, PNG, WebP, TIFF, BMP",
    ]


class Counted:
    """Records, and how many of them were asked for."""

    def __init__(self, records: Iterator[ImageRecord]) -> None:
        self.records, self.count, self.more = records, 0, threading.Condition()

    def __iter__(self) -> Iterator[ImageRecord]:
        for one in self.records:
            with self.more:
                self.count += 1
                self.more.notify()
            yield one

    def wait_for(self, count: int) -> None:
        with self.more:
            assert self.more.wait_for(lambda: self.count >= count, 60), f"only {self.count} were read"


@pytest.mark.parametrize(
    ("ahead", "ahead_bytes", "most"),
    [
        (4, PLENTY, 4),  # by number
        (100, 3 * 300 * 200 * 3, 2),  # by size decoded; the encoded one is a small part, but too much for a third
        (100, 1, 1),  # always one, however large
    ],
)
def test_no_more_is_held_than_was_asked_for(ahead: int, ahead_bytes: int, most: int) -> None:
    """Memory that grows with the size of the images; or a stream that stands still at one larger than its share."""
    given = Counted(numbered(40, width=300, height=200))
    with Decoding(LimitsConfig()) as decoding:
        stream = decoding.stream(given, ahead=ahead, ahead_bytes=ahead_bytes, then=unchanged)
        for position, (_, pixels) in enumerate(stream, start=1):
            assert number(pixels) == position - 1
            given.wait_for(min(40, position + most + 1))  # one more has been read, and waits for room
            assert given.count <= position + most + 1
    assert position == 40


def test_streams_share_their_room() -> None:
    """A worker with two shards that takes twice the memory it may."""
    size = 300 * 200 * 3 + max(len(png(one, 300, 200)) for one in range(20))
    first, second = (Counted(numbered(20, width=300, height=200)) for _ in range(2))
    with Decoding(LimitsConfig()) as decoding:
        streams = [decoding.stream(given, ahead=100, ahead_bytes=6 * size, then=unchanged) for given in (first, second)]
        next(streams[0])
        first.wait_for(8)
        assert number(next(streams[1])[1]) == 0  # a single one may always be held
        second.wait_for(3)
        assert (first.count, second.count) == (8, 3)
        assert [number(pixels) for stream in streams for _, pixels in stream] == [*range(1, 20)] * 2


def test_a_size_that_will_be_refused_takes_no_room() -> None:
    """A header that claims terabytes must not make the stream go image by image."""
    claim = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 8 + b"\x08\x02\0\0\0"
    given = Counted(iter([record(claim)] * 20))
    with Decoding(LimitsConfig()) as decoding:
        stream = decoding.stream(given, ahead=10, ahead_bytes=10**6, then=unchanged)
        assert str(next(stream)[1]).startswith("too_large: 4294967295x4294967295")
        given.wait_for(12)


def test_what_the_source_raises_comes_through(limits: LimitsConfig) -> None:
    """A damaged archive taken for its end, and half a shard committed."""

    def broken() -> Iterator[ImageRecord]:
        yield from numbered(5)
        raise ShardError("in.tar is damaged")

    with Decoding(limits) as decoding:
        with pytest.raises(ShardError, match="is damaged"):
            list(decoding.stream(broken(), ahead=3, ahead_bytes=PLENTY, then=unchanged))
        assert number(decoding.one(record(png(9)))) == 9


def test_leaving_early_closes_the_source_and_waits_for_nothing(limits: LimitsConfig) -> None:
    """A labeler that raises, and a worker that then hangs, or goes on reading the shard it gave up."""
    closed = threading.Event()

    def endless() -> Iterator[ImageRecord]:
        try:
            while True:
                yield record(png(1, 500, 500))
        finally:
            closed.set()

    with Decoding(limits) as decoding:
        stream = decoding.stream(endless(), ahead=50, ahead_bytes=PLENTY, then=unchanged)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        gc.collect()
        assert closed.is_set()
        assert number(decoding.one(record(png(2)))) == 2


def test_nothing_is_left_running(limits: LimitsConfig) -> None:
    """Processes that gather, run after run, until the node is full of them."""
    before = all_children()
    with Decoding(limits, threads=2) as decoding:
        list(decoding.stream(numbered(6), ahead=4, ahead_bytes=PLENTY, then=unchanged))
        assert len(all_children() - before) == (2 if limits.isolate_decoding else 0)
    assert all_children() <= before


@pytest.mark.parametrize(
    ("misdeed", "reason"),
    [
        (b"abort", "crashed: the decoder ended with SIGABRT"),
        (b"segfault", "crashed: the decoder ended with SIGSEGV"),
        (b"exit", "crashed: the decoder ended with exit status 3"),
        (b"raise", "crashed: the decoder ended with exit status 1"),
        (b"greed", "crashed: the decoder ran out of memory"),
    ],
)
def test_a_crash_costs_one_image(misdeed: bytes, reason: str, hostile: Decoding) -> None:
    """A shard of thousands set aside for a single file that its decoder cannot bear."""
    given = [record(png(1), "1"), record(misdeed + b" " + bytes(10**6), "2"), *numbered(5)]
    found = [pixels for _, pixels in hostile.stream(given, ahead=4, ahead_bytes=PLENTY, then=unchanged)]
    assert found[1] == reason
    assert [number(pixels) for pixels in (found[0], *found[2:])] == [1, 0, 1, 2, 3, 4]


def test_a_decoder_that_hangs_costs_one_image() -> None:
    """A worker that stands still until its shard's time is up, three times."""
    with Decoding(ISOLATED, target="tests.decoders:decode", time_limit_s=1) as decoding:
        given = [record(b"hang"), record(png(1)), record(b"hang"), record(png(2))]
        found = [pixels for _, pixels in decoding.stream(given, ahead=4, ahead_bytes=PLENTY, then=unchanged)]
    assert found[0] == found[2] == "crashed: no result within 1 s"
    assert [number(found[1]), number(found[3])] == [1, 2]


def test_leaving_does_not_wait_for_a_decoder_that_hangs() -> None:
    """A worker that is told to stop, and does not for a minute."""
    before = all_children()
    with Decoding(ISOLATED, target="tests.decoders:decode", threads=1, time_limit_s=10_000) as decoding:
        next(
            decoding.stream(
                [record(png(1)), record(b"hang"), record(b"hang")], ahead=3, ahead_bytes=PLENTY, then=unchanged
            )
        )
    assert all_children() <= before


def test_a_large_image_runs_into_the_limit_of_memory() -> None:
    """A bomb that passes for an image of allowed size, and takes the memory of the node."""
    limits = LimitsConfig(isolate_decoding=True, max_image_pixels=10**8)
    with Decoding(limits, memory=200 << 20, threads=1) as decoding:
        assert decoding.one(record(png(1, 9000, 9000))) == "crashed: the decoder ran out of memory"
        assert number(decoding.one(record(png(3)))) == 3


def test_the_limit_of_memory_leaves_room_for_the_greediest_format() -> None:
    """Good images refused because the limit was reckoned too low: 16-bit grey takes most for a pixel."""
    side = 3000
    stream = io.BytesIO()
    Image.fromarray(np.full((side, side), 257, np.uint16)).save(stream, "TIFF", compression="tiff_lzw")
    limits = LimitsConfig(isolate_decoding=True, max_image_pixels=side * side, max_image_bytes=10**6)
    with Decoding(limits) as decoding:
        assert number(decoding.one(record(stream.getvalue()))) == 1


class _Killer:
    """Sends signals to the process that decodes, one to each that it sees at work."""

    def __init__(self, *signals: int) -> None:
        self.signals, self.done = list(signals), threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        seen: set[int] = set()
        while self.signals and not self.done.wait(0.001):
            for pid in all_children() - seen:
                try:
                    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                    begun = b"decoding_child" in Path(f"/proc/{pid}/cmdline").read_bytes()  # a copy of this one before
                except (OSError, IndexError):
                    continue
                if begun and resident > 100 << 20:  # it holds part of the large image, so it is at it
                    seen.add(pid)
                    os.kill(pid, self.signals.pop(0))
                    break


@pytest.mark.parametrize(
    ("signals", "reason"),
    [
        ((signal.SIGSEGV,), "crashed: the decoder ended with SIGSEGV"),
        ((signal.SIGKILL,), None),
        ((signal.SIGKILL, signal.SIGKILL), "crashed: the decoder ended with SIGKILL"),
    ],
)
def test_a_process_killed_at_work(signals: tuple[int, ...], reason: str | None) -> None:
    """A good image lost because memory was short for a moment; or one that is tried for ever."""
    large = record(png(5, 8000, 8000))
    with Decoding(ISOLATED, threads=1) as decoding, _Killer(*signals):
        found = decoding.one(large)
        assert (found if isinstance(found, str) else None) == reason
        assert number(decoding.one(record(png(6)))) == 6


def test_a_process_killed_at_rest_costs_nothing() -> None:
    """The next image blamed for the death of a process that was waiting for it."""
    before = all_children()
    with Decoding(ISOLATED, threads=1) as decoding:
        for _ in range(3):
            assert number(decoding.one(record(png(6)))) == 6
            (process,) = all_children() - before
            os.kill(process, signal.SIGSEGV)
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


def test_a_process_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """Decoders of dead workers that fill a node: those that wait, and those that hang."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = """
import sys
from pipeline.config.label import LimitsConfig
from pipeline.decoding import Decoding
from tests.pipeline.test_decoding import png, record, unchanged
decoding = Decoding(LimitsConfig(isolate_decoding=True), target="tests.decoders:decode", time_limit_s=1, threads=1)
other = Decoding(LimitsConfig(isolate_decoding=True))
other.one(record(png(1)))
given = [record(png(1)), record(b"linger " + sys.argv[1].encode())]
stream = decoding.stream(given, ahead=2, ahead_bytes=10**9, then=unchanged)
next(stream)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program, str(pipe)], cwd=REPOSITORY, stdin=subprocess.PIPE) as parent:
        assert pipe.read_bytes() == b"here"
        tasks = Path(f"/proc/{parent.pid}/task").glob("*/children")
        left = [os.pidfd_open(int(pid)) for path in tasks for pid in path.read_text().split()]
        assert len(left) == 2
        parent.kill()
    for process in left:  # readable once it has ended
        poll = select.poll()
        poll.register(process)
        assert poll.poll(60_000), "a decoding process outlived its parent"
        os.close(process)


def test_a_process_knows_no_secrets(hostile: Decoding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials within reach of the code that is fed with foreign bytes."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    found = hostile.one(record(b"environment"))
    assert isinstance(found, str)
    assert "PATH" in found
    assert "AWS" not in found


def test_a_process_that_prints_is_not_stopped_by_it(hostile: Decoding) -> None:
    """Warnings of C libraries that fill a pipe which no one reads, so that the decoder waits for ever."""
    assert number(hostile.one(record(b"chatter " + png(4)))) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "tests.decoders:absent"}, "ImportError: no decoder here"),
        ({"target": "no.such.module:decode"}, "No module named 'no'"),
    ],
)
def test_processes_that_do_not_start_stop_the_run(options: dict[str, object], words: str) -> None:
    """Every image of a data set quarantined because an installation is broken."""
    make: Callable[..., Decoding] = Decoding
    with make(ISOLATED, **options) as decoding, pytest.raises(RunError, match=words) as caught:
        decoding.one(record(png(1)))
    assert str(caught.value).startswith("limits.isolate_decoding: a decoding process does not start: ")
    assert "\n" not in str(caught.value)


def test_a_small_image_does_not_wait_for_processes_unless_asked() -> None:
    """Processes started where no one asked for them."""
    before = all_children()
    with Decoding(LimitsConfig()) as decoding:
        assert number(decoding.one(record(png(1)))) == 1
        assert all_children() <= before


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    """A JPEG that is red at the left and blue at the right, as it is stored."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    exif = Image.Exif()
    exif[274] = orientation
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def half_a_hundred(height: int, width: int) -> tuple[int, int]:
    """As a labeler that sees images at 50 pixels on their shorter side."""
    scale = 50 / min(height, width)
    return round(height * scale), round(width * scale)


@pytest.mark.parametrize(
    ("data", "size", "decoded"),
    [
        (jpeg(803, 401), (401, 803), (51, 101)),  # an eighth
        (jpeg(803, 399), (399, 803), (100, 201)),  # of an eighth, the shorter side would be too short
        (jpeg(803, 401, orientation=6), (803, 401), (101, 51)),  # stands upright when it is turned
        (jpeg(401, 803, orientation=8), (401, 803), (51, 101)),
        (jpeg(400, 400, orientation=6), (400, 400), (50, 50)),
        (jpeg(400, 399), (399, 400), (399, 400)),  # nobody could tell the sides of a part of it apart
        (jpeg(99, 99), (99, 99), (99, 99)),
        (png(0, 803, 401), (401, 803), (401, 803)),
    ],
)
@pytest.mark.parametrize("isolate", [False, True])
def test_decoding_at_a_part_of_the_size(
    data: bytes, size: tuple[int, int], decoded: tuple[int, int], isolate: bool
) -> None:
    """Masks of another size than their image, or images that are smaller than the model sees them."""
    with Decoding(LimitsConfig(isolate_decoding=isolate), wanted=half_a_hundred, threads=1) as decoding:
        picture = decoding.one(record(data))
    assert not isinstance(picture, str), picture
    assert (picture.height, picture.width) == size
    assert picture.pixels.shape == (*decoded, 3)


def test_nothing_is_reduced_unless_that_is_asked_for(limits: LimitsConfig) -> None:
    """Labels that depend on a setting that nobody has set."""
    with Decoding(limits) as decoding:
        picture = decoding.one(record(jpeg(803, 401, orientation=6)))
    assert not isinstance(picture, str)
    assert picture.pixels.shape == (803, 401, 3)
    assert (picture.height, picture.width) == (803, 401)
