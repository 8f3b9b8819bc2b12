"""Valid bytes to nearly valid ones: pure, the same for the same random numbers."""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np

#: Numbers at which sizes and counts go wrong.
EDGES = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    511,
    512,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
)

Random = np.random.Generator
Mutation = Callable[[bytearray, Random, Sequence[bytes]], None]


def flip_bits(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    for place in random.integers(0, len(data), size=int(random.integers(1, 9))):
        data[place] ^= 1 << int(random.integers(8))


def write_random(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    start, end = _region(data, random)
    data[start:end] = random.bytes(end - start)


def cut_off(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    del data[int(random.integers(0, len(data))) :]


def cut_out(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    start, end = _region(data, random)
    del data[start:end]


def repeat(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    start, end = _region(data, random)
    data[end:end] = data[start:end] * int(random.choice([1, 1, 2, 50]))


def move(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    start, end = _region(data, random)
    part = bytes(data[start:end])
    place = int(random.integers(0, len(data)))
    data[place : place + len(part)] = part


def splice(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    """The beginning of this one, the end of another."""
    other = others[int(random.integers(len(others)))]
    data[int(random.integers(0, len(data))) :] = other[int(random.integers(0, len(other))) :]


def write_number(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    """A number at an edge, in the place of a length, a count or an offset: most of these stand near the beginning."""
    number, form = int(random.choice(EDGES)), str(random.choice([">B", ">H", "<H", ">I", "<I", "<Q"]))
    packed = struct.pack(form, number & (1 << 8 * struct.calcsize(form)) - 1)
    place = int(random.integers(0, min(len(data), int(random.choice([64, 600, len(data)]))) or 1))
    data[place : place + len(packed)] = packed


def write_zeros(data: bytearray, random: Random, _: Sequence[bytes]) -> None:
    start, end = _region(data, random)
    data[start:end] = bytes(end - start)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    write_random,
    cut_off,
    cut_out,
    repeat,
    move,
    splice,
    write_number,
    write_number,
    write_zeros,
)


def mutated(seed: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Between one and four mutations; half of the time, checksums are put right, so that what they guard is reached."""
    data = bytearray(seed)
    for _ in range(int(random.integers(1, 5))):
        if data:
            MUTATIONS[int(random.integers(len(MUTATIONS)))](data, random, others)
    if random.random() < 0.5:
        if data.startswith(b"\x89PNG"):
            _mend_png(data)
        elif data[257:262] == b"ustar":
            _mend_tar(data)
    return bytes(data)


def _region(data: bytearray, random: Random) -> tuple[int, int]:
    start = int(random.integers(0, len(data)))
    return start, min(len(data), start + int(random.choice([1, 4, 16, 64, 512, 4096])))


def _mend_png(data: bytearray) -> None:
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4


def _mend_tar(data: bytearray) -> None:
    for place in range(0, len(data) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        if data[place + 257 : place + 262] == b"ustar":
            data[place + 148 : place + 156] = b" " * 8
            data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + tarfile.BLOCKSIZE])
