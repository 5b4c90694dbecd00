"""Choose the colours of annotations: one for all, or by the category, number or segment id in a column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from imageryxr.core.annotation_values import column_texts, is_id_name, property_values
from imageryxr.core.annotations import CATEGORIES, DIM
from imageryxr.core.colors import RGBA, parse_color, resolve_colors
from imageryxr.core.colors.palettes import category_colors, colormap
from imageryxr.core.colors.parse import hex_color
from imageryxr.core.display import ANNOTATION_IDS, ANNOTATION_SCALE, describe_masks, recorded_colors
from imageryxr.core.validate import check_pair, suggest_names
from imageryxr.errors import ColorError, OptionError, format_value

# The colour of annotations whose value is missing, or has no colour in a dict.
MISSING: RGBA = (160, 160, 160, 255)
# Largest number of categories in a legend.
_MOST_NAMES = 1000


@dataclass(frozen=True)
class MarkColors:
    """The colours of annotations, and the attributes from which a legend is drawn."""

    rgba: npt.NDArray[np.uint8]
    """Uint8 (n, 4), or (1, 4) if all have one colour."""
    record: dict[str, Any] | None = None
    """The colours of categories, as `describe_masks` returns them."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """Further attributes of the picture."""


def mark_colors(
    annotations: xr.Dataset,
    picture: xr.DataArray,
    color: Any,
    colors: Any,
    cmap: Any,
    limits: Any,
    rows: npt.NDArray[np.int64] | None = None,
) -> MarkColors:
    """Return the colours of annotations; see `imageryxr.annotate`.

    With ``rows``, return the colours of these rows only; palettes and limits still depend on all annotations.
    """
    annotations = _with_exact_ids(annotations, color)
    if rows is not None and _has_segments(annotations, color, colors, cmap, limits):
        # Such a colour depends on the id alone.
        return _all_colors(annotations.isel({DIM: rows}), picture, color, colors, cmap, limits)
    made = _all_colors(annotations, picture, color, colors, cmap, limits)
    return made if rows is None or len(made.rgba) == 1 else replace(made, rgba=made.rgba[rows])


def _with_exact_ids(annotations: xr.Dataset, color: Any) -> xr.Dataset:
    """Return annotations whose ids are integers again if, for example, `Dataset.where` has made them floats."""
    name = "id" if isinstance(color, Mapping) else color
    if not isinstance(name, str) or not is_id_name(name) or name not in annotations.variables:
        return annotations
    column = annotations[name]
    if column.dims != (DIM,) or column.dtype.kind != "f":
        return annotations
    return annotations.assign({name: (DIM, property_values(column.values, name))})


def _has_segments(annotations: xr.Dataset, color: Any, colors: Any, cmap: Any, limits: Any) -> bool:
    """Return whether a column of segment ids gives the colours: uint64, or integers with the name of ids."""
    if not isinstance(color, str) or color not in annotations.variables or annotations[color].dims != (DIM,):
        return False
    dtype = annotations[color].dtype
    holds_ids = dtype == np.uint64 or (dtype.kind in "iu" and is_id_name(color))
    if dtype.kind == "i" and holds_ids and (annotations[color].values < 0).any():
        return False  # ids are never negative, so the column has numbers
    is_colormap = cmap is not None or limits is not None
    return holds_ids and not is_colormap and not (isinstance(colors, Mapping) and color == "id")


def _all_colors(
    annotations: xr.Dataset, picture: xr.DataArray, color: Any, colors: Any, cmap: Any, limits: Any
) -> MarkColors:
    if isinstance(color, Mapping):
        if colors is not None:
            raise OptionError(
                "colors=… cannot be combined with a dict color=…; give color='column' and colors={value: colour}"
            )
        return _by_value(*_distinct(annotations["id"].values), "id", {_plain(k): v for k, v in color.items()})
    if not (isinstance(color, str) and color in annotations.variables):
        if colors is not None or limits is not None:
            raise OptionError(
                f"colors= and limits= need the name of a column in color=, but color={format_value(color)}"
            )
        return MarkColors(np.array([_one_color(color, annotations)], np.uint8))
    plain = column_values(annotations, color, "color")
    if _has_segments(annotations, color, colors, cmap, limits):
        return _by_segment(plain, picture, colors)
    if plain.dtype.kind in "iuf" and not isinstance(colors, Mapping):
        return _by_number(plain, color, cmap if colors is None else colors, limits)
    for name, given in (("limits", limits), ("cmap", cmap)):
        if given is not None:
            raise OptionError(
                f"{name}={given!r} applies to columns of numbers, but {color!r} contains categories; give colors=…, a "
                "dict value → colour or the name of a palette"
            )
    return _by_category(annotations[color], color, colors)


def column_values(table: xr.Dataset, name: str, what: str) -> npt.NDArray[Any]:
    """Return the values of a column of annotations, or raise `OptionError` if the argument ``what`` names none."""
    if not isinstance(name, str):
        raise OptionError(
            f"{what}={format_value(name)} is not the name of a column; add the values to the annotations, e.g. "
            f"annotations.assign({what}=('annotation', values)), and give {what}={what!r}"
        )
    if name in table.variables and table[name].dims == (DIM,):
        return np.asarray(table[name].values)
    if name in table.variables:
        raise OptionError(
            f"the column {what}={name!r} has dims {table[name].dims}; give a column with one value per annotation"
        )
    columns = [str(key) for key in table.variables if table[key].dims == (DIM,)]
    raise OptionError(
        f"{what}={name!r} is not a column of the annotations{suggest_names(str(name), columns)}; their columns are "
        f"{columns[:12]}"
    )


def _one_color(color: Any, annotations: xr.Dataset) -> RGBA:
    try:
        return parse_color(color)
    except ColorError as error:
        columns = [str(name) for name in annotations.variables if annotations[name].dims == (DIM,)]
        hint = suggest_names(color, columns) if isinstance(color, str) else ""
        raise ColorError(
            f"color={format_value(color)} is neither a column of the annotations{hint} nor a colour: {str(error)[:300]}"
        ) from None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_missing(value: Any) -> bool:
    return value is None or value != value or value == ""


def _by_value(
    distinct: list[Any],
    inverse: npt.NDArray[np.intp],
    name: str,
    colors: Mapping[Any, Any],
    texts: Mapping[Any, str] | None = None,
) -> MarkColors:
    table = np.array([parse_color(colors[v]) if v in colors else MISSING for v in distinct], np.uint8).reshape(-1, 4)
    used = {v: colors[v] for v in distinct if v in colors}
    if distinct and not used:
        raise ColorError(
            f"none of the values of {name!r}, such as {distinct[0]!r}, has a colour in the dict, whose keys are "
            f"{list(colors)[:5]}; give a dict value → colour"
        )
    return MarkColors(table[inverse], _record(used, name, texts))


def _distinct(values: npt.NDArray[Any]) -> tuple[list[Any], npt.NDArray[np.intp]]:
    """Return the distinct values in order, missing ones last, and the index of each value among them."""
    if values.dtype.kind != "O":
        numbers, inverse = np.unique(values, return_inverse=True)
        return numbers.tolist(), inverse.reshape(-1)
    codes, uniques = pd.factorize(values)  # missing values have the code -1
    plain = [None if _is_missing(v) else v for v in [*uniques.tolist(), None]]
    found = sorted({v for v in plain if v is not None}, key=lambda v: (str(type(v)), v))
    places = {v: i for i, v in enumerate([*found, None])}
    inverse = np.array([places[v] for v in plain], np.intp)[codes]
    return [*found, *([None] if (inverse == len(found)).any() else [])], inverse


def _by_category(column: xr.DataArray, name: str, colors: Any) -> MarkColors:
    values = np.asarray(column.values)
    distinct, inverse = _distinct(values)
    is_time = values.dtype.kind in "mM"
    texts = dict(zip(distinct, column_texts(np.unique(values)), strict=True)) if is_time else None
    if isinstance(colors, Mapping):
        given = {np.array(k, values.dtype).item() if is_time else _plain(k): v for k, v in colors.items()}
        return _by_value(distinct, inverse, name, given, texts)
    if colors is not None and not isinstance(colors, str):
        raise ColorError(
            f"colors={format_value(colors)} is neither a dict nor the name of a palette; for the categories of "
            f"{name!r}, give colors={{value: colour}}"
        )
    present = [v for v in distinct if v is not None]
    known: list[Any] = [False, True] if values.dtype == bool else json.loads(column.attrs.get(CATEGORIES, "[]"))
    ordered = [*known, *(v for v in present if v not in {*known})]
    return _by_value(distinct, inverse, name, category_colors(ordered, colors), texts)


def _record(colors: Mapping[Any, Any], name: str, texts: Mapping[Any, str] | None = None) -> dict[str, Any] | None:
    if len(colors) > _MOST_NAMES:
        return None
    # A name of digits would be read as the id of a segment.
    texts = texts or {value: str(value) for value in colors}
    names = {value: f"{name} {texts[value]}" if texts[value].isdecimal() else texts[value] for value in colors}
    return describe_masks({names[value]: parse_color(color) for value, color in colors.items()})


def _by_segment(ids: npt.NDArray[Any], picture: xr.DataArray, colors: Any) -> MarkColors:
    distinct, inverse = np.unique(ids.astype(np.uint64), return_inverse=True)
    table = np.full((len(distinct), 4), 255, np.uint8)
    found = resolve_colors(colors)
    table[:, :3], table[:, 3] = found.colors_for(distinct), found.alphas_for(distinct)
    if colors is None:
        rgb, is_drawn = recorded_colors(picture, distinct)
        table[is_drawn, :3] = rgb[is_drawn]
    table[~found.is_shown(distinct)] = MISSING
    listed = np.flatnonzero(found.is_shown(distinct) & (distinct > 0)).tolist()
    attrs: dict[str, Any] = {}
    if 0 < len(listed) <= _MOST_NAMES:
        before = json.loads(picture.attrs.get(ANNOTATION_IDS, "{}"))
        texts = {str(distinct[i]): hex_color((table[i, 0], table[i, 1], table[i, 2], 255)) for i in listed}
        attrs[ANNOTATION_IDS] = json.dumps(before | texts)
    return MarkColors(table[inverse.reshape(-1)], None, attrs)


def _by_number(values: npt.NDArray[Any], name: str, cmap: Any, limits: Any) -> MarkColors:
    table, _ = colormap("viridis" if cmap is None else cmap)
    numbers = values.astype(np.float64)
    is_known = np.isfinite(numbers)
    low, high = _check_limits(numbers[is_known], limits)
    place = np.zeros(len(values))
    place[is_known] = _shares(values[is_known], low, high, is_whole=limits is None)
    rgba = np.full((len(values), 4), 255, np.uint8)
    rgba[:, :3] = table[np.minimum((place * len(table)).astype(np.intp), len(table) - 1)]
    rgba[~is_known] = MISSING
    steps = table[np.linspace(0, len(table) - 1, 32).round().astype(np.intp)].tolist()
    shown = [hex_color((r, g, b, 255)) for r, g, b in steps]
    scale = {"title": name, "low": low, "high": high, "colors": shown, "is_whole": values.dtype.kind in "iu"}
    return MarkColors(rgba, None, {ANNOTATION_SCALE: json.dumps(scale)})


def _shares(values: npt.NDArray[Any], low: float, high: float, is_whole: bool) -> npt.NDArray[np.float64]:
    """Return the positions of finite values between the limits, from 0 to 1.

    With ``is_whole``, the limits of a column of integers are its smallest and its largest value.
    """
    if values.dtype.kind in "iu" and is_whole and len(values):
        # Large integers, which floats would round, are subtracted exactly: modulo 2**64.
        steps = (values.astype(np.uint64) - np.uint64(int(values.min()) % 2**64)).astype(np.float64)
        return np.asarray(steps / max(float(steps.max()), 1.0))
    # Halves, because the difference of two floats may be infinite.
    span = high / 2 - low / 2
    found = (values.astype(np.float64) / 2 - low / 2) / span if span else np.zeros(len(values))
    return np.asarray(np.clip(found, 0, 1))


def _check_limits(values: npt.NDArray[np.float64], limits: Any) -> tuple[float, float]:
    if limits is None:
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        return (low, high) if low < high else (low, low + 1.0)
    return check_pair("limits", limits, "two different finite numbers (low, high), e.g. (0, 1)")
