"""Reading pickles of NumPy arrays, as model zoos publish them, without running anything that they name.

A pickle is a program that may call whatever it can import. Here it can import nothing: the few names that NumPy arrays
and plain containers need are answered by the stand-ins below, which rebuild arrays of numbers from their bytes. NumPy's
own functions are not used for it, as they trust the sizes and types that they are given.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

#: Types of array elements that are read.
TYPES: Final = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8"})

#: The most objects that a pickle may refer to.
MAX_OBJECTS: Final = 10_000_000

_NUMBERING: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


class ForbiddenError(pickle.UnpicklingError):
    """The pickle holds something else than plain data and arrays of numbers. The message is a clause that says what."""


def load(file: BinaryIO) -> Any:
    """The object in a pickle of plain containers, strings, numbers and arrays. Python 2's strings are read as Latin-1.

    Raises:
        ForbiddenError: it holds anything else.
        Exception: whatever `pickle` raises for damaged bytes: UnpicklingError, EOFError, and most built-in errors.
    """
    start = file.tell()
    for operation, argument, _ in pickletools.genops(file):
        # A pickle numbers its objects, and the reader makes room for as many as the highest number says.
        if operation.name in _NUMBERING and int(argument or 0) > MAX_OBJECTS:
            raise ForbiddenError(f"it numbers its objects up to {argument}")
    file.seek(start)
    return _plain(_Unpickler(file, encoding="latin1").load())


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ForbiddenError(f"it asks for {module}.{name} when it is read")
        return _STAND_INS[module, name]


class _Type:
    """For numpy.dtype."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if code not in TYPES:
            raise ForbiddenError(f"it holds an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])

    def read(self, data: bytes | bytearray | str) -> npt.NDArray[Any]:
        """A flat array of native byte order that owns its memory."""
        if isinstance(data, str):
            data = data.encode("latin1")
        return np.frombuffer(data, self.dtype).astype(self.dtype.newbyteorder("="))


class _Array:
    """For numpy.ndarray as `_reconstruct` makes it: without content until its state comes."""

    value: npt.NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, kind, is_fortran, data = state[-4:]  # a version precedes them, but for very old files
        self.value = kind.read(data).reshape(shape, order="F" if is_fortran else "C")


class _Dict(dict[Any, Any]):
    """For collections.OrderedDict."""

    def __setstate__(self, state: object) -> None:
        """Drop attributes, such as PyTorch's `_metadata`."""


def _reconstruct(cls: object, shape: object, code: object) -> _Array:
    return _Array()


def _frombuffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> npt.NDArray[Any]:
    return kind.read(data).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: _Type, data: bytes | str) -> Any:
    return kind.read(data).reshape(())


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_STAND_INS: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("collections", "OrderedDict"): _Dict,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


def _plain(value: Any) -> Any:
    """The arrays and dicts in place of their stand-ins."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
