"""The labels of a run in the formats of other tools: one function a format, and EXPORTS, the table of them.

An export streams: it never holds more of a run than a few rows, and files that grow are written to the local disk
first, so that nobody meets a half-written one. Of a folder, the file that others begin with comes last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline import outputs, runs, scratch
from pipeline.errors import UserError
from pipeline.exports import coco, cvat, fiftyone, huggingface, labelstudio, parquet, yolo
from pipeline.exports.common import Request, Written, check_new, quality_columns
from pipeline.store import Store
from pipeline.view import PLAIN, View

__all__ = ["EXPORTS", "Export", "Format", "Request", "Written", "export"]


class Export(Protocol):
    """Writes one format."""

    def __call__(self, request: Request, /) -> Written:
        """Write the labels of a run to `request.out`.

        Raises:
            UserError: `out` is no place for this format.
            ShardError: an image can no longer be read.
            StoreError: the storage failed, or a data object of the run is damaged.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format, and which options it takes: images beside the labels, polygons in the place of masks.

    file: an example of a name, where it is one file; else it is a folder.
    """

    write: Export
    file: str | None = None
    images: bool = False
    polygons: bool = False
    quality: bool = True


EXPORTS: dict[str, Format] = {
    # Quality columns: coco and fiftyone take those of each row as they come.
    "coco": Format(write=coco.write, file="instances.json", quality=False),
    "yolo": Format(write=yolo.write, images=True, quality=False),
    "cvat": Format(write=cvat.write, images=True, polygons=True),
    "labelstudio": Format(write=labelstudio.write, images=True, polygons=True),
    "fiftyone": Format(write=fiftyone.write, images=True, quality=False),
    "hf": Format(write=huggingface.write, images=True),
    "parquet": Format(write=parquet.write),
}


def export(
    store: Store,
    run_uri: str,
    *,
    format: str,
    out: str,
    view: View = PLAIN,
    images: bool = False,
    polygons: bool = False,
) -> Written:
    """Export a run, or as much of it as is done.

    Args:
        store: where the run is, and where the export goes.
        run_uri: the run.
        format: one of EXPORTS.
        out: the URI to write: of a file for coco, which is replaced; of a new folder for all others.
        view: which masks count, and what their classes are called. Images without a mask that counts stay.
        images: with the images themselves, as they were stored.
        polygons: masks as polygons, for formats that know both.

    Raises:
        UserError: there is no run, the format is unknown or lacks an option, or `out` is no place for it.
        ShardError: an image can no longer be read.
        StoreError: the storage failed, or a data object of the run is damaged.
    """
    if format not in EXPORTS:
        raise UserError(f"--format is {format!r}; accepted are {', '.join(EXPORTS)}.")
    kind = EXPORTS[format]
    for name, asked, known in (("images", images, kind.images), ("polygons", polygons, kind.polygons)):
        if asked and not known:
            others = ", ".join(other for other, one in EXPORTS.items() if getattr(one, name))
            raise UserError(f"--{name} is not for --format {format}; it is for {others}.")
    labels = runs.opened(store, run_uri, view)
    if kind.file is None:
        check_new(store, out)
    else:
        outputs.check_file(store, out, key="--out", example=kind.file)
    quality = quality_columns(labels) if kind.quality else ()
    scratch.sweep()  # exports that were killed leave files as large as they are
    return kind.write(Request(labels=labels, out=out, images=images, polygons=polygons, quality=quality))
