"""Checkpoints that are small, and would take much when they are read."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from patchdct.checkpoint import read_checkpoint
from patchdct.errors import ModelError


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_archive_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """A machine out of memory by a file of a megabyte: torch.load unpacks what torch.save never packs."""
    stream = io.BytesIO()
    torch.save({"model": {"w": torch.zeros(64)}}, stream)
    (tmp_path / "m.pth").write_bytes(stream.getvalue())
    assert read_checkpoint(tmp_path / "m.pth").state["w"].shape == (64,)
    small = io.BytesIO()
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert refusal(tmp_path / "m.pth", small.getvalue()).endswith(
        "m.pth is refused: its archive is compressed, as torch.save does not write it; accepted are tensors, arrays of "
        "numbers and plain data"
    )


@pytest.mark.parametrize("cut", [30, 200, 600, 1000, 1400])
def test_a_cut_archive(cut: int, tmp_path: Path) -> None:
    """A traceback of the zip reader for a download that broke off."""
    stream = io.BytesIO()
    torch.save({"model": {"w": torch.zeros(64)}}, stream)
    assert refusal(tmp_path / "m.pth", stream.getvalue()[:cut]).endswith("m.pth is truncated or damaged")


@pytest.mark.parametrize(
    "pickled",
    [b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".", b"Np1000000000\n.", b"\x80\x04Nr\xff\xff\xff\x3f."],
)
def test_a_pickle_that_numbers_its_objects_to_the_skies(pickled: bytes, tmp_path: Path) -> None:
    """Seventeen gigabytes for nine bytes: the reader makes room for the number that it is told."""
    assert "is refused: it numbers its objects up to 1" in refusal(tmp_path / "m.pkl", pickled).replace("2147", "1")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",  # a frame of 2^63 bytes
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",  # bytes of that length
        b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(99) + b".",  # a number of 2^31 bytes
        b"\x80\x02}" + b"K\1}" * 50_000 + b"s" * 50_000 + b".",  # dicts within dicts
        b"\x80\x02\x82\1.",  # an extension
        b"\x80\x02}q\0K\1h\0s.",  # one that holds itself
    ],
)
def test_pickles_with_absurd_sizes(pickled: bytes, tmp_path: Path) -> None:
    """A traceback, or a crash of the process."""
    refusal(tmp_path / "m.pkl", pickled)
