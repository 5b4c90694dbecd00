"""OME-Zarr images that tests write."""

from __future__ import annotations

from pathlib import Path

import zarr

from imageryxr.sources.address import parse_address
from imageryxr.sources.omezarr.open import open_omezarr
from tests.support.source_suite import noise

SPACE = {"x": "space", "y": "space", "z": "space", "c": "channel", "t": "time"}


def axes_of(names: str, unit: str | None = "nanometer") -> list[dict]:
    return [{"name": n, "type": SPACE[n], **({"unit": unit} if unit and SPACE[n] == "space" else {})} for n in names]


def level(path: str, scale, translation=None) -> dict:
    steps = [{"type": "scale", "scale": list(scale)}]
    if translation is not None:
        steps.append({"type": "translation", "translation": list(translation)})
    return {"path": path, "coordinateTransformations": steps}


def write_ome(
    folder: Path, arrays, multiscale: dict, *, version: str = "0.5", more: dict | None = None, **kwargs
) -> None:
    """Write arrays with zarr-python and the given NGFF metadata as attributes of their group."""
    form = 3 if version == "0.5" else 2
    group = zarr.open_group(str(folder), mode="w", zarr_format=form)
    for entry, values in zip(multiscale["datasets"], arrays, strict=True):
        options = {
            "chunks": tuple(min(n, 8 if i == values.ndim - 3 else 16) for i, n in enumerate(values.shape)),
            **kwargs,
        }
        stored = group.create_array(entry["path"], shape=values.shape, dtype=values.dtype, **options)
        stored[...] = values
    ome = {"multiscales": [multiscale], **(more or {})}
    if form == 3:
        group.attrs["ome"] = {"version": "0.5", **ome}
    else:
        multiscale["version"] = "0.4"
        group.attrs.update(ome)


def open_ome(place, **options):
    return open_omezarr(parse_address(f"zarr://{place}"), **options)


SHAPE = (5, 20, 18)


def one_level(
    folder, scale=(40, 8, 8), translation=None, unit: str | None = "nanometer", whole=None, axes=None, **kwargs
):
    multiscale = {"axes": axes or axes_of("zyx", unit), "datasets": [level("s0", scale, translation)]}
    if whole:
        multiscale["coordinateTransformations"] = whole
    write_ome(folder, [noise(SHAPE)], multiscale, **kwargs)
