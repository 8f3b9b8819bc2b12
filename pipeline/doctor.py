"""What is installed, and what can be reached: one finding each, for a person who wonders why something does not work.

Torch, detectron2 and boto3 are asked in processes of their own: an import that crashes is then a finding, too.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline import __version__
from pipeline.errors import LabelingError
from pipeline.store import Patience, Store, redact, scheme

_PACKAGES = ("ray", "pyarrow", "pycocotools", "numba", "boto3", "s3fs")
_TIMEOUT_S = 120
_CONNECT_S = 5
_HOW = "`make install` brings it; one built from source works as well"

_MODEL = """
import importlib, json
said = {}
for name in ("torch", "torchvision", "detectron2"):
    try:
        said[name] = getattr(importlib.import_module(name), "__version__", "of unknown version")
    except Exception as error:
        said[name + " error"] = f"{type(error).__name__}: {error}"
try:
    importlib.import_module("detectron2.modeling")
except Exception as error:
    said.setdefault("detectron2 error", f"{type(error).__name__}: {error}")
if "torch" in said:
    import torch
    said["cuda"] = torch.version.cuda
    said["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps(said))
"""

_CREDENTIALS = """
import boto3, json
found = boto3.Session().get_credentials()
print(json.dumps({"method": found and found.method}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: `missing` is what labeling cannot do without, `absent` what it can."""

    mark: Literal["ok", "absent", "missing"]
    name: str
    text: str


def examine(uri: str | None = None) -> Iterator[Finding]:
    """Look at everything, one finding after the other.

    Args:
        uri: a place whose reachability matters too.
    """
    yield Finding(mark="ok", name="patchlabel", text=__version__)
    yield Finding(mark="ok", name="python", text=f"{platform.python_version()} at {sys.executable}")
    for name in _PACKAGES:
        yield _package(name)
    yield from _model()
    yield from _storage(uri)


def _package(name: str) -> Finding:
    try:
        return Finding(mark="ok", name=name, text=metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(mark="missing", name=name, text="it is not installed; `make install` brings it")


def _model() -> Iterator[Finding]:
    """What the model needs."""
    said = _asked(_MODEL)
    for name in ("torch", "torchvision", "detectron2"):
        if fault := said.get(f"{name} error", said.get("error")):
            yield Finding(mark="missing", name=name, text=f"it cannot be imported ({fault}); {_HOW}")
        else:
            cuda = f", CUDA {said['cuda']}" if said.get("cuda") else ", built without CUDA"
            yield Finding(mark="ok", name=name, text=said[name] + (cuda if name == "torch" else ""))
    gpus = said.get("gpus") or []
    for name in gpus:
        yield Finding(mark="ok", name="GPU", text=name)
    if not gpus:
        yield Finding(mark="absent", name="GPU", text="torch finds none; labeling uses the CPU")


def _storage(uri: str | None) -> Iterator[Finding]:
    """Whether there are credentials, and whether the endpoint and the place that was asked for answer."""
    said = _asked(_CREDENTIALS)
    needed = uri is not None and scheme(uri) in ("s3", "s3a")
    if method := said.get("method"):
        yield Finding(mark="ok", name="S3 credentials", text=f"found, by {method}")
    else:
        text = said.get("error", "none found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
        yield Finding(mark="missing" if needed else "absent", name="S3 credentials", text=text)
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        yield _endpoint(endpoint)
    if uri is not None:
        yield _place(uri)


def _endpoint(url: str) -> Finding:
    """Whether something listens where AWS_ENDPOINT_URL points."""
    shown = redact(url)
    try:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        if not parts.hostname:
            return Finding(mark="missing", name="S3 endpoint", text=f"{shown} is no URL such as http://host:9000")
        socket.create_connection((parts.hostname, port), _CONNECT_S).close()
    except (OSError, ValueError) as error:
        return Finding(mark="missing", name="S3 endpoint", text=f"{shown} does not answer ({error})")
    return Finding(mark="ok", name="S3 endpoint", text=f"{shown} answers")


def _place(uri: str) -> Finding:
    """Whether a place can be listed."""
    try:
        first = next(iter(Store(Patience(attempts=2)).list(uri)), None)
    except LabelingError as error:
        return Finding(mark="missing", name="place", text=str(error))
    return Finding(mark="ok", name="place", text=f"{redact(uri)} answers{'' if first else ', and nothing is there'}")


def _asked(script: str) -> dict[str, Any]:
    """What a script prints as its last line of JSON; under `error`, why it does not."""
    try:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_TIMEOUT_S} s"}
    lines, complaints = ended.stdout.splitlines(), ended.stderr.strip().splitlines()
    if ended.returncode or not lines:
        return {"error": complaints[-1] if complaints else f"the interpreter ended with {ended.returncode}"}
    said: dict[str, Any] = json.loads(lines[-1])
    return said
