"""Secrets that are planted where a user may have them, and the search for them in what is left behind."""

from __future__ import annotations

import base64
import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq

from pipeline.store import Store

#: What each planted secret holds, with characters that URLs write otherwise.
MARK = "pLaNtEd+sEcReT"

#: What credentials come by. The endpoint and the key id of S3 are no secrets, and are the fixture's.
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-aws",
    "AWS_SESSION_TOKEN": f"{MARK}-session",
    "AZURE_STORAGE_ACCOUNT_KEY": f"{MARK}-azure",
    "HF_TOKEN": f"{MARK}-hf",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}-mlflow",
    "MLFLOW_TRACKING_URI": f"https://me:{MARK}-mlflow@127.0.0.1:9",
    "WANDB_API_KEY": f"{MARK}-wandb",
}

#: URIs that hold a secret, in the forms that storage knows.
URIS = {
    "password": f"s3://AKIAEXAMPLE:{MARK}@bucket/a.tar",
    "password with a slash": f"s3://AKIAEXAMPLE:ab/{MARK}@bucket/a.tar",
    "http user": f"https://{MARK}@127.0.0.1:9/a.tar",
    "http password": f"http://me:{MARK}@127.0.0.1:9/a.tar",
    "aws": f"https://127.0.0.1:9/a.tar?X-Amz-Algorithm=AWS4&X-Amz-Signature={MARK}",
    "aws, version 2": f"http://127.0.0.1:9/a.tar?AWSAccessKeyId=AKIA&Expires=1&Signature={MARK}",
    "aws session": f"http://127.0.0.1:9/a.tar?versionId=1&X-Amz-Security-Token={MARK}",
    "azure": f"http://127.0.0.1:9/a.tar?sv=2024&se=2030&sig={MARK}",
    "google": f"http://127.0.0.1:9/a.tar?GoogleAccessId=me&Signature={MARK}",
    "token": f"http://127.0.0.1:9/a.tar?download=1&token={MARK}",
    "api key": f"http://127.0.0.1:9/a.tar?api_key={MARK}",
}

#: How it would look in a text, in a URL, and in base64 at each of the three offsets of a byte.
NEEDLES = (
    MARK,
    quote(MARK, safe=""),
    *(base64.b64encode(b"-" * offset + MARK.encode()).decode()[4:-4] for offset in range(3)),
)


def betrayed(text: str | bytes) -> list[str]:
    """The forms of the secret that a text or a file's bytes hold."""
    data = text if isinstance(text, bytes) else text.encode()
    return [needle for needle in NEEDLES if needle.encode() in data]


def betraying(store: Store, places: Iterable[str]) -> list[str]:
    """The objects below some places that hold the secret: in their names, their bytes, or what these decompress to."""
    found = []
    for place in places:
        for info in store.list(f"{place.rstrip('/')}/", literal=True):
            data = store.get(info.uri)
            if betrayed(info.uri) or any(betrayed(part) for part in (data, *_inner(data))):
                found.append(info.uri)
    return found


def betraying_files(folder: Path) -> list[Path]:
    """The same for a folder that may hold pipes, sockets and links."""
    files = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    return [path for path in files if path.is_file() and not path.is_symlink() and betrayed(path.read_bytes())]


def _inner(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"PAR1"):
        file = pq.ParquetFile(io.BytesIO(data))
        yield repr(file.read().to_pylist()).encode()
        yield repr(file.schema_arrow.metadata).encode()
    elif data.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield archive.read(name)
