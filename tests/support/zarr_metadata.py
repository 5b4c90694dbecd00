"""Metadata of Zarr images as dicts that tests can change, and files written from them."""

from __future__ import annotations

import json
from pathlib import Path

AXES = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]


STEPS = [{"type": "scale", "scale": [40, 8, 8]}, {"type": "translation", "translation": [20, 4, 4]}]


OMERO = {"channels": [{"window": {"start": 0, "end": 200, "min": 0, "max": 255}}]}


SHAPE = (4, 8, 8)


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def array_v2(**members) -> dict:
    return {
        "zarr_format": 2, "shape": list(SHAPE), "chunks": list(SHAPE), "dtype": "|u1", "fill_value": 7, "order": "C",
        "filters": None, "compressor": None, "dimension_separator": "/", **members,
    }  # fmt: skip


def array_v3(**members) -> dict:
    return {
        "zarr_format": 3, "node_type": "array", "shape": list(SHAPE), "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(SHAPE)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "fill_value": 7,
        "codecs": [BYTES], "attributes": {}, **members,
    }  # fmt: skip


def image(steps=STEPS, **members) -> dict:
    return {"axes": AXES, "datasets": [{"path": "0", "coordinateTransformations": steps}], **members}


def files_v2(ome=None, **members) -> dict[str, dict]:
    return {".zattrs": ome or {"multiscales": [image(version="0.4")], "omero": OMERO}, "0/.zarray": array_v2(**members)}


def files_v3(ome=None, **members) -> dict[str, dict]:
    ome = ome or {"version": "0.5", "multiscales": [image()], "omero": OMERO}
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
    return {"zarr.json": group, "0/zarr.json": array_v3(**members)}


def write(folder: Path, files: dict[str, dict]) -> str:
    for name, document in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(json.dumps(document).encode("utf-8", "surrogatepass"))
    return str(folder)
