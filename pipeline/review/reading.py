"""A file of answers, as an annotation tool wrote it: fetched, unpacked, its format told by its content."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass

from pipeline.errors import NotFoundError, UserError
from pipeline.review import coco, cvat, labelstudio
from pipeline.review.answers import Answer
from pipeline.store import Store, redact

#: Bytes of a file of answers, which is read whole.
LIMIT = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of answers, as it was read. left_out: images that nobody has looked at, where the tool tells."""

    format: str
    sha256: str
    answers: tuple[Answer, ...]
    left_out: int = 0


def read(uri: str, store: Store) -> File:
    """Read what a tool wrote; the format is told by the content.

    Raises:
        UserError: it is not there, of no known format, or holds something that is no mask.
    """
    where = f"--corrections {redact(uri)}"
    data, sha256 = fetch(uri, store, "--corrections")
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if head == b"<":
        return File(format="CVAT", sha256=sha256, answers=cvat.read(data, where))
    if head == b"[":
        found = labelstudio.tasks(data, where)
        answers = tuple(labelstudio.answer(task) for task in found if task.result is not None)
        return File(format="Label Studio", sha256=sha256, answers=answers, left_out=len(found) - len(answers))
    if head == b"{":
        return File(format="COCO", sha256=sha256, answers=coco.read(data, where))
    raise UserError(
        f"{where} is of no known format; accepted are Label Studio's JSON, CVAT for images 1.1 (XML, or the ZIP with "
        "it) and COCO JSON"
    )


def fetch(uri: str, store: Store, key: str) -> tuple[bytes, str]:
    """The content of a file of answers, out of its ZIP if it is in one, and the checksum of the file.

    Raises:
        UserError: it is not there, or too large; the sentence begins with `key`.
    """
    try:
        with store.open(uri) as stream:
            data = stream.read(LIMIT + 1)
    except NotFoundError as error:
        raise UserError(f"{key}: {error}") from error
    if len(data) > LIMIT:
        raise UserError(f"{key} {redact(uri)} has more than {LIMIT >> 20} MiB; hand it over in several files")
    sha256 = hashlib.sha256(data).hexdigest()
    return (_unzipped(data, f"{key} {redact(uri)}") if data.startswith(b"PK\x03\x04") else data), sha256


def _unzipped(data: bytes, where: str) -> bytes:
    """The one file of annotations in a ZIP, as CVAT hands it out."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [one for one in archive.infolist() if one.filename.endswith((".xml", ".json"))]
            if len(files) != 1:
                raise UserError(f"{where} holds {len(files)} files of annotations; accepted is one")
            with archive.open(files[0]) as stream:
                content = stream.read(LIMIT + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{where} is a ZIP that cannot be read") from error
    if len(content) > LIMIT:
        raise UserError(f"{where} holds more than {LIMIT >> 20} MiB; hand it over in several files")
    return content
