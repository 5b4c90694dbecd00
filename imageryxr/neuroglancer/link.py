"""Write arrays as a Neuroglancer link."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import layer_type_of, list_from_attr, parse_json_attr, spatial_arrays
from imageryxr.core.colors.ids import list_unique_ids, neuroglancer_seed
from imageryxr.core.colors.mapping import ColorSpec, resolve_colors
from imageryxr.core.colors.parse import hex_color
from imageryxr.core.display import (
    CONTRAST_LIMITS,
    EQUIVALENCES,
    LAYER,
    LAYER_ORDER,
    LINK_LAYER,
    LINK_TIMESTAMP,
    OPACITY,
    SHADER,
    UNOPENED,
    UNSUPPORTED,
    VISIBLE,
    SegmentDisplay,
)
from imageryxr.core.validate import check_flag
from imageryxr.errors import LayerError, LinkError, OptionError, format_value, param
from imageryxr.neuroglancer.linked_segments import restore_links
from imageryxr.neuroglancer.local_annotations import annotation_specs
from imageryxr.neuroglancer.open_layers import displayed_limits
from imageryxr.neuroglancer.shader_controls import DEFAULT_SHADER
from imageryxr.neuroglancer.shader_limits import find_grey_limits
from imageryxr.neuroglancer.shaders import displayed_invlerp, image_options, strip_comments
from imageryxr.neuroglancer.source_writer import write_source
from imageryxr.neuroglancer.state_writer import saved_link, state_of_dataset, state_of_tree
from imageryxr.ops.tree import dimensions_of, layers_of

SITE = "https://neuroglancer-demo.appspot.com"


def neuroglancer_link(
    obj: xr.DataTree | xr.Dataset | xr.DataArray,
    *,
    ids: Iterable[int] | None = None,
    colors: ColorSpec = None,
    site: str = SITE,
    allow_local: bool = False,
) -> str:
    """Return a Neuroglancer link that shows the layers of a tree, Dataset or array at its position.

    Computes nothing. Segments, colours, alphas and contrast come from the layers' attrs, unless ``ids`` or ``colors``
    are given. The link of a tree also contains the layers that `open_neuroglancer` did not open, such as meshes.

    Parameters
    ----------
    obj : DataTree, Dataset or DataArray
        A result of `open_neuroglancer`, ``view``, `align`, `open_image` or `open_segmentation`. For a Dataset or array
        the viewer is centred on its grid. A layer is shown at the coordinates of its array, also if these were changed.
        An array that was computed is shown where its source is stored.
    ids : iterable of int, optional
        The segments that the link selects in each segmentation. Default: the keys of the dict ``colors``, or those
        that the layer's attrs select.
    colors : optional
        Colours of the selected segments, as in `overlay`: a dict id → colour, such as ``colors_of(picture, ids)``, the
        name of a palette, or ``("neuroglancer", seed)``. Default: those of the layer's attrs; for a layer without
        display settings, the colours that `overlay` gives to ``ids``.
    site : str, default "https://neuroglancer-demo.appspot.com"
        URL of the viewer, such as ``"https://spelunker.cave-explorer.org"``.
    allow_local : bool, default False
        Whether sources may be files or servers of this machine or its network, which other people cannot open.

    Returns
    -------
    str
        ``site/#!{…}``.

    Raises
    ------
    LinkError
        If the viewer cannot open the source of a layer.
    LayerError
        If there are no layers, or no segmentation for ``ids`` or ``colors``.
    ColorError
        If ``colors`` is invalid or lacks one of ``ids``.
    OptionError
        If ``colors`` is a palette and no segments are selected.

    Warns
    -----
    LinkWarning
        If a layer may not be shown at the coordinates of its array, which are irregular or contradict its source.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> link = ix.neuroglancer_link(em, allow_local=True)
    >>> again = ix.open_neuroglancer(link, allow_local=True)
    >>> again["image/image"].identical(em.assign_attrs(again["image/image"].attrs))
    True
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation)
    >>> link = ix.neuroglancer_link(seg, colors={5: "red", 7: "cyan"}, allow_local=True)
    >>> ix.open_neuroglancer(link, allow_local=True)["segmentation/segmentation"].attrs["selected_ids"]
    [5, 7]
    """
    check_flag("allow_local", allow_local)
    if not isinstance(site, str):
        raise OptionError(f"site={format_value(site)} must be the address of a viewer, such as {SITE!r}")
    if isinstance(obj, xr.DataArray):
        obj = obj.to_dataset(name=obj.name or layer_type_of(obj))
    arrays = layers_of(obj) if isinstance(obj, xr.DataTree) else _dataset_layers(obj)
    if ids is not None or colors is not None:
        arrays = _select_segments(arrays, ids, colors)
    ours = {name: _layer_spec(name, array, allow_local) for name, array in arrays.items()}
    kept = [entry for name in (UNSUPPORTED, UNOPENED) for entry in list_from_attr(parse_json_attr(obj.attrs.get(name)))]
    others = {o["name"]: json.loads(o["json"]) for o in kept if o.get("json")}
    if isinstance(obj, xr.DataTree):
        others |= annotation_specs(obj, dimensions_of(obj, arrays))
    else:
        others = {}
    order = [
        n
        for n in saved_link(obj.attrs).get("order", list_from_attr(obj.attrs.get(LAYER_ORDER)))
        if n in ours or n in others
    ]
    names = [*order, *(n for n in [*ours, *others] if n not in order)]
    first = next(iter(arrays.values()))
    state = state_of_tree(obj, names) if isinstance(obj, xr.DataTree) else state_of_dataset(obj, first)
    layers = restore_links({n: {**(ours.get(n) or others[n]), "name": n} for n in names}, set(ours))
    state = {"title": obj.attrs.get("title"), **state, "layers": list(layers.values())}
    text = json.dumps({k: v for k, v in state.items() if v is not None}, separators=(",", ":"), ensure_ascii=False)
    # JSON may contain an unpaired surrogate, which a URL cannot encode.
    return f"{site.rstrip('/#!')}/#!{urllib.parse.quote(text, safe='~@$&()*!+=:;,.?/', errors='replace')}"


def _dataset_layers(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    found = {str(v.attrs.get(LAYER, name)): v for name, v in spatial_arrays(dataset).items() if "rgba" not in v.dims}
    if not found:
        raise LayerError(
            f"none of the variables {list(map(str, dataset.data_vars))} is an image or a segmentation; a viewer draws "
            "the layers itself: give an image and a segmentation, such as the Dataset of `align`, instead of a picture"
        )
    return found


def _select_segments(arrays: Mapping[str, xr.DataArray], ids: Any, colors: Any) -> dict[str, xr.DataArray]:
    """Return the layers, with segmentations whose attrs select segments and contain their colours."""
    if all(layer_type_of(array) != "segmentation" for array in arrays.values()):
        raise LayerError("ids and colors are those of segments, but no layer is a segmentation: leave them out")
    wanted = None if ids is None else list_unique_ids(ids)
    found = {}
    for name, array in arrays.items():
        if layer_type_of(array) == "segmentation":
            look = SegmentDisplay.from_attrs(array.attrs)
            array = array.assign_attrs(_selected_display(look, wanted, colors).to_attrs())
        found[name] = array
    return found


def _selected_display(look: SegmentDisplay | None, ids: list[int] | None, colors: Any) -> SegmentDisplay:
    """Return display settings that select segments and contain their colours."""
    shown = look or SegmentDisplay()
    chosen = colors if ids is None and isinstance(colors, Mapping) else shown.selected_ids if ids is None else ids
    selected = tuple(list_unique_ids(chosen))
    hidden = tuple(i for i in shown.hidden_ids if i not in selected)
    shown = replace(shown, selected_ids=selected, hidden_ids=hidden)
    seed = neuroglancer_seed(colors)
    if seed is not None:
        return replace(shown, colors={}, color_seed=seed, default_color=None)
    if colors is None and look is not None:
        return shown
    if not selected:
        raise OptionError(
            param("colors", colors), " needs the ids of segments, because a link lists each colour: give ",
            param("ids", ...),
        )  # fmt: skip
    found = resolve_colors(colors, selected)
    rgba = np.column_stack([found.colors_for(selected), found.alphas_for(selected)]).tolist()
    own = {i: (r, g, b, a) for i, (r, g, b, a) in zip(selected, rgba, strict=True)}
    return replace(shown, colors={**shown.colors, **own})


def _layer_spec(name: str, array: xr.DataArray, allow_local: bool) -> dict[str, Any]:
    kind = layer_type_of(array)
    rest = _rest(array)
    out: dict[str, Any] = {
        "type": kind,
        "name": name,
        "source": write_source(name, array, rest, allow_local=allow_local),
    }
    visible_elsewhere = rest.pop("visible", False)  # in another layer group of the link
    if array.attrs.get(VISIBLE, True):
        rest.pop("archived", None)
    elif not visible_elsewhere:
        out["visible"] = False
    when = _timestamp_text(array)
    if when:
        out["timestamp"] = when
    return {**rest, **out, **(_segment_spec(array) if kind == "segmentation" else _image_spec(array, rest))}


def _rest(array: xr.DataArray) -> dict[str, Any]:
    """Return the entries of the layer in its link that have no attrs of their own."""
    try:
        found = json.loads(array.attrs.get(LINK_LAYER) or "{}")
    except (TypeError, ValueError):
        raise LinkError(f"attrs[{LINK_LAYER!r}] is not the JSON that open_neuroglancer wrote; delete it") from None
    return found if isinstance(found, dict) else {}


def _timestamp_text(array: xr.DataArray) -> str:
    """Return the timestamp of a graphene layer as in its link, or in milliseconds since 1970; "" for other layers."""
    if LINK_TIMESTAMP in array.attrs:
        return str(array.attrs[LINK_TIMESTAMP])
    timestamp = array.attrs.get("timestamp")
    if not isinstance(timestamp, str) or not str(array.attrs.get("source", "")).startswith("graphene://"):
        return ""
    return str(int(np.datetime64(timestamp.replace("Z", "").split("+")[0], "ms").astype(np.int64)))


def _image_spec(array: xr.DataArray, rest: Mapping[str, Any]) -> dict[str, Any]:
    attrs = array.attrs
    out: dict[str, Any] = {}
    if OPACITY in attrs:
        out["opacity"] = float(attrs[OPACITY])
    if attrs.get(SHADER):
        out["shader"] = attrs[SHADER]
    limits = attrs.get(CONTRAST_LIMITS)
    controls = rest.get("shaderControls")
    controls = dict(controls) if isinstance(controls, Mapping) else {}
    if limits is not None and not _shader_shows_limits(limits, attrs.get(SHADER, ""), controls, array.dtype):
        return {**out, **_write_limits(limits, attrs.get(SHADER, ""), controls, array.dtype)}
    return {**out, "shaderControls": controls} if controls else out


def _write_limits(limits: Any, shader: str, controls: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the entries ``shader`` and ``shaderControls`` that show contrast limits."""
    name, inverted = displayed_invlerp(shader) or ("normalized", False)
    tried = []
    for low, high in (limits, (limits[1], limits[0])):
        setting = controls.get(name)
        setting = dict(setting) if isinstance(setting, Mapping) else {}
        tried.append({**controls, name: {**setting, "range": [_json_number(low), _json_number(high)]}})
    code = strip_comments(shader)
    for changed in tried:
        if find_grey_limits(code, changed, dtype, tuple(limits)) == tuple(limits):
            return {"shaderControls": changed}
    if find_grey_limits(code, tried[0], dtype) is None and displayed_invlerp(shader):
        return {"shaderControls": tried[inverted]}  # a shader that shows colours keeps them
    if find_grey_limits("", tried[0], dtype, tuple(limits)) == tuple(limits):
        return {"shader": DEFAULT_SHADER, "shaderControls": tried[0]}
    # An invlerp control ignores limits that the data type does not have.
    low, high = map(float, limits)
    shown = f"(float(toRaw(getDataValue())) - ({low!r})) / ({high - low!r})"
    return {"shader": f"void main() {{\n  emitGrayscale({shown});\n}}\n"}


def _shader_shows_limits(limits: Any, shader: str, controls: Mapping[str, Any], dtype: np.dtype[Any]) -> bool:
    """Return whether a shader with its controls already shows the contrast limits."""
    if not shader and not controls:
        return False
    shown = find_grey_limits(strip_comments(shader), controls, dtype, tuple(limits))
    if shown is None:
        try:
            options = image_options({"shader": shader, "shaderControls": controls}, "shader")
        except LinkError:
            return False
        shown = displayed_limits(options["contrast"], normalized=options["normalized"], dtype=dtype)
    return shown is not None and all(abs(a - b) <= 1e-9 * abs(b) for a, b in zip(limits, shown, strict=True))


def _json_number(value: Any) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _segment_spec(array: xr.DataArray) -> dict[str, Any]:
    look = SegmentDisplay.from_attrs(array.attrs)
    out: dict[str, Any] = {}
    if array.attrs.get(EQUIVALENCES):
        out["equivalences"] = [[str(i) for i in group] for group in parse_json_attr(array.attrs[EQUIVALENCES])]
    if look is None:
        ids = list_from_attr(array.attrs.get("ids"))
        return out | ({"segments": [str(i) for i in ids]} if ids else {})
    out["segments"] = [*map(str, look.selected_ids), *(f"!{i}" for i in look.hidden_ids)]
    out["selectedAlpha"], out["notSelectedAlpha"] = look.selected_alpha, look.rest_alpha
    if look.colors:
        # The viewer ignores alpha in segmentColors.
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
