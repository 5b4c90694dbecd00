"""From arrays back to a Neuroglancer link."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.align import layer_type_of
from imageryxr.boxes import DIMS
from imageryxr.errors import LayerError, LinkError
from imageryxr.grid import grid_of
from imageryxr.look import (
    CONTRAST_LIMITS,
    DIMENSIONS,
    EQUIVALENCES,
    LAYER,
    LAYER_ORDER,
    LINK_SOURCE,
    LINK_TIMESTAMP,
    NM_PER_PIXEL,
    OPACITY,
    ORIENTATION,
    POSITION,
    SHADER,
    UNSUPPORTED,
    VISIBLE,
    SegmentLook,
    hex_color,
)
from imageryxr.sources.access import lies_locally
from imageryxr.sources.address import parse_address
from imageryxr.sources.shaders import invlerp_of
from imageryxr.views import dimensions_of, layers_of, position_of

SITE = "https://neuroglancer-demo.appspot.com"


def neuroglancer_link(
    obj: xr.DataTree | xr.Dataset | xr.DataArray, *, site: str = SITE, allow_local: bool = False
) -> str:
    """Give the Neuroglancer link that shows the layers of a tree or Dataset, at the same place.

    Computes nothing. Segments, colours, alphas and contrast are those of the layers' attrs; layers of a link that
    were not opened, such as annotations, come along from a tree.

    Parameters
    ----------
    obj : DataTree, Dataset or DataArray
        As `open_neuroglancer`, ``view``, `align`, `open_image` and `open_segmentation` return them. A Dataset or array
        is shown around the middle of its grid.
    site : str, default "https://neuroglancer-demo.appspot.com"
        Where the viewer is, such as ``"https://spelunker.cave-explorer.org"``.
    allow_local : bool, default False
        Whether sources may be files or servers of this machine, which open nowhere else.

    Returns
    -------
    str
        ``site/#!{…}``.

    Raises
    ------
    LinkError
        If a layer has no source that a viewer could open.
    LayerError
        If there are no layers.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample(sample_path).image)
    >>> link = ix.neuroglancer_link(em, allow_local=True)
    >>> again = ix.open_neuroglancer(link, allow_local=True)
    >>> again["image/image"].identical(em.assign_attrs(again["image/image"].attrs))
    True
    """
    if isinstance(obj, xr.DataArray):
        obj = obj.to_dataset(name=obj.name or layer_type_of(obj))
    state = _state_of_tree(obj) if isinstance(obj, xr.DataTree) else _state_of_dataset(obj)
    arrays = layers_of(obj) if isinstance(obj, xr.DataTree) else _layers(obj)
    ours = {name: _layer(name, array, allow_local) for name, array in arrays.items()}
    others = {o["name"]: json.loads(o["json"]) for o in obj.attrs.get(UNSUPPORTED, []) if o.get("json")}
    if not isinstance(obj, xr.DataTree):
        others = {}
    order = [n for n in obj.attrs.get(LAYER_ORDER, []) if n in ours or n in others]
    names = [*order, *(n for n in [*ours, *others] if n not in order)]
    state["layers"] = [ours.get(n) or {**others[n], "name": n} for n in names]
    text = json.dumps({k: v for k, v in state.items() if v is not None}, separators=(",", ":"), ensure_ascii=False)
    # half of a surrogate pair, which JSON can hold and no URL, becomes a question mark
    return f"{site.rstrip('/#!')}/#!{urllib.parse.quote(text, safe='~@$&()*!+=:;,.?/', errors='replace')}"


def _state_of_tree(tree: xr.DataTree) -> dict[str, Any]:
    arrays = layers_of(tree)
    unit = dimensions_of(tree, arrays)
    return _state(tree.attrs, unit, position_of(tree, arrays, unit))


def _state_of_dataset(dataset: xr.Dataset) -> dict[str, Any]:
    first = next(iter(_layers(dataset).values()))
    if "plane_axes" in first.attrs:
        return _state_of_plane(dataset, first)
    grid = grid_of(first)
    said = dataset.attrs.get(DIMENSIONS)
    unit = tuple(said[axis][0] for axis in "xyz") if said else grid.resolution
    # The middle voxel is that of `BBox.around`; the point inside of it that a link named is kept.
    index = [o + n // 2 for o, n in zip(grid.voxel_offset, grid.shape[::-1], strict=True)]
    point = [(i + 0.5) * r / u for i, r, u in zip(index, grid.resolution, unit, strict=True)]
    named = dataset.attrs.get(POSITION)
    steps = [r / u / 2 for r, u in zip(grid.resolution, unit, strict=True)]
    if named is not None and all(abs(a - b) <= s + 1e-9 for a, b, s in zip(named, point, steps, strict=True)):
        point = [float(v) for v in named]
    return _state(dataset.attrs, unit, point)


def _state_of_plane(dataset: xr.Dataset, first: xr.DataArray) -> dict[str, Any]:
    """Return the state of a picture that `imageryxr.plane` cut: its coordinates are those of the volume, turned."""
    grid, axes = grid_of(first), np.array(first.attrs["plane_axes"])
    said = dataset.attrs.get(DIMENSIONS)
    unit = tuple(said[axis][0] for axis in "xyz") if said else grid.resolution
    middle = [
        (o + n // 2 + 0.5) * r for o, n, r in zip(grid.voxel_offset, grid.shape[::-1], grid.resolution, strict=True)
    ]
    point = [nm / u for nm, u in zip(axes.T @ middle, unit, strict=True)]
    zoom = dataset.attrs.get(NM_PER_PIXEL, grid.resolution[0])
    turned = {ORIENTATION: _quaternion_of(axes), NM_PER_PIXEL: zoom, "layout": "xy"}
    return _state({**dataset.attrs, **turned}, unit, point)


def _quaternion_of(axes: npt.NDArray[np.float64]) -> list[float]:
    """Return the quaternion (x, y, z, w) that turns x, y and z into directions, the rows of ``axes``.

    Of a mirrored frame, as slices along y are, the one that looks at the same picture from its other side.
    """
    m = axes.T * ([1, 1, -1] if np.linalg.det(axes) < 0 else [1, 1, 1])
    # Four times the products of q with itself (Shepperd 1978): its largest row is q, but for its length.
    (a, b, c), (d, e, f), (g, h, i) = m
    products = np.array(
        [
            [1 + a - e - i, b + d, c + g, h - f],
            [b + d, 1 - a + e - i, f + h, c - g],
            [c + g, f + h, 1 - a - e + i, d - b],
            [h - f, c - g, d - b, 1 + a + e + i],
        ]
    )
    row = products[np.argmax(np.diagonal(products))]
    q = row / np.linalg.norm(row) * (-1 if row[3] < 0 else 1)
    return [float(f"{v:.12g}") + 0.0 for v in q]


def _state(attrs: Mapping[Any, Any], unit: Any, point: Any) -> dict[str, Any]:
    turned = list(attrs.get(ORIENTATION, [0, 0, 0, 1]))
    zoom = attrs.get(NM_PER_PIXEL)
    return {
        "title": attrs.get("title"),
        "dimensions": {axis: [float(f"{u * 1e-9:.12g}"), "m"] for axis, u in zip("xyz", unit, strict=True)},
        "position": [float(v) for v in point],
        "crossSectionScale": None if zoom is None else zoom / min(unit),
        "crossSectionOrientation": None if turned == [0, 0, 0, 1] else turned,
        "layout": attrs.get("layout", "xy"),
    }


def _layers(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    found = {
        str(v.attrs.get(LAYER, name)): v
        for name, v in dataset.data_vars.items()
        if not set(DIMS) - {*v.dims, *v.coords} and "rgba" not in v.dims
    }
    if not found:
        raise LayerError(f"the Dataset's variables {list(map(str, dataset.data_vars))} are no images or segmentations")
    return found


def _layer(name: str, array: xr.DataArray, allow_local: bool) -> dict[str, Any]:
    kind = layer_type_of(array)
    out: dict[str, Any] = {"type": kind, "name": name, "source": _source(name, array, allow_local)}
    if not array.attrs.get(VISIBLE, True):
        out["visible"] = False
    when = _timestamp(array)
    if when:
        out["timestamp"] = when
    return out | (_segments(array) if kind == "segmentation" else _image(array))


def _source(name: str, array: xr.DataArray, allow_local: bool) -> Any:
    source = array.attrs.get("source")
    if not isinstance(source, str) or "://" not in source:
        raise LinkError(
            f"the layer {name!r} has no source that a viewer could open (attrs['source'] is {source!r}): it is an "
            "array in memory; export it to precomputed:// or OME-Zarr first"
        )
    address = parse_address(source)
    if lies_locally(address) and not allow_local:
        raise LinkError(
            f"the layer {name!r} lies at {address.public}, on this machine or its network, where no one else's viewer "
            "reaches; to make the link all the same, give allow_local=True"
        )
    raw = array.attrs.get(LINK_SOURCE)
    if raw:
        return json.loads(raw)
    if address.format == "zarr":
        return address.zarr_name
    return f"{address.format}://{address.public}" if address.format else address.public


def _timestamp(array: xr.DataArray) -> str:
    """Return the instant of a layer that changes in time, as its link had it, else in milliseconds."""
    if LINK_TIMESTAMP in array.attrs:
        return str(array.attrs[LINK_TIMESTAMP])
    said = array.attrs.get("timestamp")
    if not isinstance(said, str) or not str(array.attrs.get("source", "")).startswith("graphene://"):
        return ""
    return str(int(np.datetime64(said.replace("Z", "").split("+")[0], "ms").astype(np.int64)))


def _image(array: xr.DataArray) -> dict[str, Any]:
    attrs = array.attrs
    out: dict[str, Any] = {}
    if OPACITY in attrs:
        out["opacity"] = float(attrs[OPACITY])
    if attrs.get(SHADER):
        out["shader"] = attrs[SHADER]
    limits = attrs.get(CONTRAST_LIMITS)
    if limits is not None:
        control = invlerp_of(out.get("shader", ""))
        if control is None and out.get("shader"):
            out["shader"] = "#uicontrol invlerp normalized\nvoid main() {\n  emitGrayscale(normalized());\n}\n"
        name, inverted = control or ("normalized", False)
        low, high = reversed(limits) if inverted else limits
        out["shaderControls"] = {name: {"range": [_tidy(low), _tidy(high)]}}
    return out


def _tidy(value: Any) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _segments(array: xr.DataArray) -> dict[str, Any]:
    look = SegmentLook.of(array.attrs)
    out: dict[str, Any] = {}
    if array.attrs.get(EQUIVALENCES):
        out["equivalences"] = [[str(i) for i in group] for group in array.attrs[EQUIVALENCES]]
    if look is None:
        ids = array.attrs.get("ids")
        return out | ({"segments": [str(i) for i in ids]} if ids else {})
    out["segments"] = [*map(str, look.selected_ids), *(f"!{i}" for i in look.hidden_ids)]
    out["selectedAlpha"], out["notSelectedAlpha"] = look.selected_alpha, look.rest_alpha
    if look.colors:
        # The viewer takes no alpha here.
        out["segmentColors"] = {str(i): hex_color((*c[:3], 255)) for i, c in look.colors.items()}
    if look.color_seed:
        out["colorSeed"] = look.color_seed
    if look.default_color is not None:
        out["segmentDefaultColor"] = hex_color((*look.default_color[:3], 255))
    if look.saturation != 1:
        out["saturation"] = look.saturation
    if not look.all_if_none_selected:
        out["ignoreNullVisibleSet"] = False
    return out
