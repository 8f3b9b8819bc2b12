"""CVAT: XML of the format "CVAT for images 1.1", to be uploaded to a task with the same images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from pipeline import polygons, scratch
from pipeline.exports import bitmaps
from pipeline.exports.common import Item, Request, Tally, Written, attributes, folder, for_xml
from pipeline.exports.parts import TextParts
from pipeline.store import redact

_IMAGES = 10_000  # a file; more than a task should have


def write(request: Request, /) -> Written:
    """`annotations-*.xml`, with images `images/*`, and `labels.json`, for the raw editor of labels of a new task.

    Images go by their keys, or with `images` by the names of their files: those of the task must be the same. Masks are
    CVAT's own, which keep holes and pieces. As polygons, each piece is a shape, whose holes are joined to its outline
    by bridges; those of an instance are a group. Score and quality columns are attributes. What people have corrected
    has the source `manual`, all else `auto`, which CVAT forgets when it reads the file. Quarantined images are not in
    it.
    """
    tally = Tally()
    labels = raw_labels(request)
    groups = 0
    with folder(request) as files, scratch.folder() as local:
        head, tail = xml_head(request, labels), "</annotations>\n"
        with TextParts(files, local, "annotations-{}.xml", head=head, tail=tail, entries=_IMAGES) as parts:
            for number, item in enumerate(tally.sized(request)):
                parts.write("".join(xml_image(item, number, request, groups)))
                groups += len(item.row.instances)
                if item.image is not None:
                    files.put(f"images/{item.name}", item.image.data)
        files.put_last("labels.json", json.dumps(labels, indent=1).encode() + b"\n")
        return tally.written(request, files.bytes)


def raw_labels(request: Request) -> list[dict[str, Any]]:
    """The labels as CVAT's raw editor takes them."""
    attributes = [
        {"name": name, "mutable": False, "input_type": "text", "default_value": "", "values": []}
        for name in ("score", *request.quality)
    ]
    kind = "polygon" if request.polygons else "mask"
    return [{"name": for_xml(one.name), "type": kind, "attributes": attributes} for one in request.labels.categories]


def xml_head(request: Request, labels: list[dict[str, Any]]) -> str:
    """What stands before the images."""
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task>',
        f"<name>{_text(request.labels.manifest.run_id)}</name>",
        f"<source>{_text(redact(request.labels.uri))}</source>\n<labels>",
    ]
    for label in labels:
        lines.append(f"<label><name>{_text(label['name'])}</name><type>{label['type']}</type><attributes>")
        lines += [
            f"<attribute><name>{_text(one['name'])}</name><mutable>False</mutable><input_type>text</input_type>"
            "<default_value></default_value><values></values></attribute>"
            for one in label["attributes"]
        ]
        lines.append("</attributes></label>\n")
    return "".join([*lines, "</labels></task></meta>\n"])


def xml_image(item: Item, number: int, request: Request, groups: int) -> Iterator[str]:
    """An image with its shapes; groups: how many instances the images before have."""
    row, names = item.row, {category.id: category.name for category in request.labels.categories}
    name = row.key if item.image is None else item.name
    yield f'<image id="{number}" name={_quoted(name)} width="{row.width}" height="{row.height}">\n'
    source = "manual" if row.corrected else "auto"
    for index, counts in enumerate(row.instances.counts):
        label = _quoted(names[int(row.instances.category_ids[index])])
        of_all = f'label={label} source="{source}" occluded="0"'
        values = "".join(_attribute(*one) for one in attributes(row, index, request.quality).items())
        if request.polygons:
            for ring in polygons.outlines(counts, row.height, row.width):
                points = ";".join(f"{x},{y}" for x, y in ring.tolist())
                group = f'group_id="{groups + index + 1}" z_order="0"'
                yield f'<polygon {of_all} {group} points="{points}">{values}</polygon>\n'
        else:
            yield f'<mask {of_all} {_mask(counts, row.height, row.width)} z_order="0">{values}</mask>\n'
    yield "</image>\n"


def _mask(counts: str, height: int, width: int) -> str:
    """A mask as CVAT has it: the runs along the rows of its box."""
    found = bitmaps.crop(counts, height, width)
    rows, columns = found.pixels.shape
    runs = bitmaps.row_runs(replace(found, left=0, top=0), rows, columns).tolist()
    box = f'left="{found.left}" top="{found.top}" width="{columns}" height="{rows}"'
    return f'rle="{", ".join(map(str, runs))}" {box}'


def _attribute(name: str, value: float | None) -> str:
    return f"<attribute name={_quoted(name)}>{'' if value is None else value}</attribute>"


def _text(value: str) -> str:
    return escape(for_xml(value))


def _quoted(value: str) -> str:
    return quoteattr(for_xml(value))
