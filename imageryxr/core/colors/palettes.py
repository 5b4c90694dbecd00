"""Choose colours for ids from named palettes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from imageryxr.core.colors.distinct import find_contacts, lab_to_rgb, separate_neighbors
from imageryxr.core.colors.ids import (
    UInt8Array,
    UInt64Array,
    hash_rows,
    list_unique_ids,
    neuroglancer_colors,
    neuroglancer_seed,
    parse_key,
)
from imageryxr.core.colors.parse import RGB, parse_color
from imageryxr.core.validate import check_flag, check_number, suggest_names
from imageryxr.errors import ColorError, OptionError, format_value


def palette(
    ids: Any,
    name: Any = "auto",
    *,
    distinct: bool = False,
    by: str | None = None,
    id: str | None = None,
    h: float | None = None,
    s: float | None = None,
    l: float | None = None,  # noqa: E741  (ImageryClient's keyword)
) -> dict[int, RGB]:
    """Return a colour for each id.

    The forms of ``name`` are those of ``colors=`` of `overlay`, so that a legend matches its picture. No data are read,
    unless `ids` is a lazy array, which is computed whole; use `unique_ids` for large arrays.

    Parameters
    ----------
    ids : iterable of int, integer array of any shape, or table
        Segment ids up to 2**64 - 1. Duplicates and the background, 0, are ignored. With ``by`` and ``id``, a DataFrame
        or dict with a row per segment.
    name : str, mapping, ("neuroglancer", seed) or None
        By default "husl" for up to a dozen ids and "glasbey" for more. None is ``"stable"``, as in `overlay`. A mapping
        id → colour is used as it is. ``("neuroglancer", seed)`` gives the colours of a layer with that
        ``segmentColorSeed``. The names are:

        - ``"stable"``: each colour depends on its id alone, so that figures made at different times agree. This is the
          default of `overlay`. Among many ids, some colours are similar;
        - ``"neuroglancer"``: Neuroglancer's colours with seed 0, so that a figure matches the viewer;
        - ``"husl"``: evenly spaced hues of equal lightness, for up to a dozen segments that should be as distinct and
          as equally prominent as possible. Adding an id changes the colours of the others, as for all palettes below.
          These are ImageryClient's default colours;
        - ``"hls"``: like ``"husl"``, but brighter and perceptually less even;
        - ``"glasbey"``, ``"glasbey_light"``, … (colorcet): 256 colours, each as different as possible from the previous
          ones; for dozens of segments;
        - ``"colorblind"``: seven colours that people with common colour blindnesses can distinguish (Okabe and Ito's,
          without black); they repeat after seven ids;
        - ``"tab10"``, ``"Set1"``, … (Matplotlib's qualitative colormaps): their colours in order; they repeat if there
          are more ids;
        - any other colormap of Matplotlib (``"viridis"``) or colorcet (``"fire"``): sampled evenly without its ends,
          for ids whose order is meaningful. Names in both libraries are Matplotlib's; ``cet_…`` selects colorcet's.
    distinct : bool, default False
        Give ids that touch in `ids`, which must be a segmentation of at least two dims, visibly different colours. An
        id whose colour is too similar to that of a neighbour gets another colour of the palette; all others keep
        theirs. The result depends on the ids and the array alone.
    by, id : str, optional
        Columns of a table, or names of its index, such as ``by="cell_type", id="pt_root_id"``: each id has the colour
        of its type, and `legend` lists the types. Ids without a type are left out. By default, ``"colorblind"`` for up
        to seven types and ``"glasbey_light"`` for more.
    h, s, l : float, optional
        First hue, saturation and lightness of ``"husl"`` and ``"hls"``, from 0 to 1; by default 0.01, 1.0 and 0.65.

    Returns
    -------
    dict of int to tuple of int
        ``{id: (r, g, b)}``, each 0–255, in the order of the ids.

    Raises
    ------
    ColorError
        If the palette does not exist, or a mapping has no colour for an id.
    LayerError
        If the ids are not integers.
    OptionError
        If an id does not fit uint64, or h, s or l is outside 0–1 or given with another palette.

    Examples
    --------
    >>> import imageryxr as ix
    >>> ix.palette([864691135617152361, 5], "tab10")
    {864691135617152361: (31, 119, 180), 5: (255, 127, 14)}
    >>> ix.palette([5], "stable") == {5: ix.palette(range(100), "stable")[5]}
    True
    """
    check_flag("distinct", distinct)
    if by is not None or id is not None:
        return _by_type(ids, name, by, id, distinct=distinct)
    if distinct:
        ids = np.asarray(ids)
        contacts = find_contacts(ids)
    known = list_unique_ids(ids)
    chosen = _resolve_name(name, len(known), any(value is not None for value in (h, s, l)))
    hsl = _hue_options(chosen, h, s, l)
    wanted = np.array(known, dtype=np.uint64)
    if isinstance(chosen, Mapping):
        colors = _mapped_colors(chosen, known)
    elif isinstance(chosen, int):
        colors = neuroglancer_colors(wanted, chosen)
    else:
        colors = palette_colors(chosen, wanted, hsl)
    if distinct:
        colors = separate_neighbors(wanted, colors, contacts, _spare_colors(chosen, hsl))
    return {segment: (r, g, b) for segment, (r, g, b) in zip(known, colors.tolist(), strict=True)}


class TypePalette(dict[int, RGB]):
    """A dict id → colour, with the colour of each type, which `legend` lists.

    Attributes
    ----------
    types : dict
        Type → (r, g, b), in the order of the types.
    """

    types: dict[str, RGB]

    def __init__(self, colors: dict[int, RGB], types: dict[str, RGB]) -> None:
        super().__init__(colors)
        self.types = types

    def __reduce__(self) -> tuple[Any, ...]:
        return (TypePalette, (dict(self), self.types))


def category_colors(values: Sequence[Any], name: Any = None) -> dict[Any, RGB]:
    """Return a colour for each category, in order: distinct ones by default, or those of a palette."""
    default = "colorblind" if len(values) <= 7 else "glasbey_light"
    table = ranked_colors(default if name is None else name, len(values)).tolist()
    return {value: (r, g, b) for value, (r, g, b) in zip(values, table, strict=True)}


def _palette_by_type(table: Any, by: str, id: str, name: Any) -> TypePalette:
    """Return the colours of the ids of a table by their type; ids without a type are left out."""
    from imageryxr.core.annotation_values import property_values  # imports xarray

    if not (hasattr(table, "columns") or isinstance(table, Mapping)):
        raise OptionError(
            f"by={format_value(by)} needs a table with a row per segment, but ids is a {type(table).__name__}; give a "
            "DataFrame or a dict name → values"
        )
    # The ids are often the index of a DataFrame or a coordinate of a Dataset, as in the tables of `measure`.
    columns = getattr(table, "columns", table)
    index = [name for name in getattr(getattr(table, "index", None), "names", ()) if name and name not in columns]
    names = list(dict.fromkeys(str(name) for name in (*columns, *index, *getattr(table, "coords", ()))))
    for column, argument in ((by, "by"), (id, "id")):
        if not isinstance(column, str) or column not in names:
            raise OptionError(
                f"{argument}={format_value(column)} is not a column of the table{suggest_names(str(column), names)}; "
                f"its columns are {names[:12]}"
            )
    table = table.reset_index(index) if index else table
    ids, kinds = property_values(table[id], id, strict=True, are_ids=True), property_values(table[by])
    if ids.dtype.kind not in "iu":
        raise OptionError(f"the column id={format_value(id)} holds {ids.dtype} values, which are not segment ids")
    found: dict[int, str] = {}
    for segment, kind in zip(ids.tolist(), kinds.tolist(), strict=True):
        if not segment or kind is None or kind != kind:
            continue
        if found.setdefault(segment, str(kind)) != str(kind):
            raise ColorError(
                f"the segment {segment} has the types {found[segment]!r} and {str(kind)!r} in the column {by!r}; "
                "remove one of its rows"
            )
    chosen = category_colors(sorted(set(found.values())), name)
    return TypePalette({segment: chosen[kind] for segment, kind in found.items()}, chosen)


def _by_type(table: Any, name: Any, by: str | None, id: str | None, *, distinct: bool) -> dict[int, RGB]:
    if by is None:
        raise OptionError(f"id={format_value(id)} needs by=, the name of the column of types")
    if id is None:
        raise OptionError(f"by={format_value(by)} needs id=, the name of the column of segment ids")
    if distinct:
        raise OptionError(
            f"distinct=True gives neighbours different colours, but by={format_value(by)} gives all ids of a type "
            "one colour; leave out one of them"
        )
    return _palette_by_type(table, by, id, None if isinstance(name, str) and name == "auto" else name)


def _resolve_name(name: Any, count: int, has_hues: bool) -> str | int | Mapping[Any, Any]:
    """Return the meaning of ``name``: the name of a palette, the seed of Neuroglancer's colours, or a mapping."""
    if isinstance(name, Mapping):
        return name
    if name is None:
        return "stable"
    if isinstance(name, str):
        return name if name != "auto" else "husl" if count <= 12 or has_hues else "glasbey"
    seed = neuroglancer_seed(name)
    if seed is None:
        raise ColorError(f"{format_value(name)}{spec_advice(name)}")
    return seed


def spec_advice(colors: Any) -> str:
    """Return the end of the message about a value that does not state colours: what to write instead."""
    hint = ""
    if isinstance(colors, (Sequence, np.ndarray)):
        hint = " A list of colours has no ids: write dict(zip(ids, colors)), or dict.fromkeys(ids, color) to give all "
        hint += "ids one colour."
    elif hasattr(colors, "columns"):
        hint = " Write dict(zip(table['id'], table['color'])) with the columns of ids and colours, or "
        hint += "palette(table, by='cell_type', id='id') to give each type a colour."
    elif hasattr(colors, "to_dict"):
        hint = " Write colors.to_dict()."
    kinds = "a palette name, a dict id → colour, 'neuroglancer' or ('neuroglancer', seed)"
    return f" ({type(colors).__name__}) is not {kinds}.{hint}"


def _mapped_colors(colors: Mapping[Any, Any], ids: list[int]) -> UInt8Array:
    known = {parse_key(key): parse_color(color)[:3] for key, color in colors.items()}
    absent = [segment for segment in ids if segment not in known]
    if absent:
        shown = ", ".join(map(str, absent[:10])) + (", …" if len(absent) > 10 else "")
        raise ColorError(f"the mapping has no colour for {len(absent)} of the {len(ids)} ids: {shown}. Add them.")
    return np.array([known[segment] for segment in ids], dtype=np.uint8).reshape(-1, 3)


def _spare_colors(chosen: str | int | Mapping[Any, Any], hsl: HSL) -> UInt8Array:
    """Return the colours from which `separate_neighbors` takes replacements."""
    if isinstance(chosen, int):
        return neuroglancer_colors(np.arange(1, 513, dtype=np.uint64), chosen)
    if isinstance(chosen, Mapping):
        return np.array([parse_color(color)[:3] for color in chosen.values()], dtype=np.uint8).reshape(-1, 3)
    return palette_table(chosen, hsl)


# M. Okabe and K. Ito, "Color universal design", 2008. Without their black, which is invisible over electron microscopy.
_OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

HSL: TypeAlias = tuple[float, float, float]
_IMAGERYCLIENT_HSL: HSL = (0.01, 1.0, 0.65)


def _hue_options(name: Any, h: float | None, s: float | None, l: float | None) -> HSL:  # noqa: E741
    given = {key: value for key, value in (("h", h), ("s", s), ("l", l)) if value is not None}
    if given and name not in ("husl", "hls"):
        raise OptionError(
            f"{', '.join(f'{key}={value!r}' for key, value in given.items())}: only the palettes 'husl' and 'hls' have "
            f"h, s and l, but the palette is {name!r}. Leave them out, or write name='husl'."
        )
    chosen = dict(zip("hsl", _IMAGERYCLIENT_HSL, strict=True))
    chosen |= {key: check_number(key, value, 0, 1) for key, value in given.items()}
    return (chosen["h"], chosen["s"], chosen["l"])


def palette_colors(name: str, ids: UInt64Array, hsl: HSL = _IMAGERYCLIENT_HSL) -> UInt8Array:
    """Return the colours (n, 3) of ids in a palette."""
    if name == "stable":
        table = stable_table()
        return table[hash_rows(ids, len(table))]
    if name == "neuroglancer":
        return neuroglancer_colors(ids, 0)
    return ranked_colors(name, len(ids), hsl)


def ranked_colors(name: str, count: int, hsl: HSL = _IMAGERYCLIENT_HSL) -> UInt8Array:
    """Return the first ``count`` colours of a palette that depends on the rank of an id."""
    if not isinstance(name, str):
        raise ColorError(
            f"{format_value(name)} is not the name of a palette. Write one, such as 'stable' or 'glasbey'."
        )
    if name in ("husl", "hls"):
        return _hue_circle(name, count, hsl)
    table, listed = colormap(name)
    if listed:
        return table[np.arange(count) % len(table)]
    # Same as seaborn and ImageryClient: evenly spaced without the extremes.
    places = np.linspace(0, 1, count + 2)[1:-1]
    return table[np.minimum((places * len(table)).astype(np.intp), len(table) - 1)]


def _hue_circle(name: str, count: int, hsl: HSL) -> UInt8Array:
    import colorsys

    from hsluv import hsluv_to_rgb

    h, s, l = hsl  # noqa: E741
    hues = ((np.linspace(0, 1, count + 1)[:-1] + h) % 1).tolist()
    if name == "husl":
        # The factors 359 and 99 are seaborn's, for the same colours as ImageryClient.
        colors = [hsluv_to_rgb((hue * 359, s * 99, l * 99)) for hue in hues]
    else:
        colors = [colorsys.hls_to_rgb(hue, l, s) for hue in hues]
    rgb = np.array(colors, dtype=np.float64).reshape(-1, 3)
    # Truncated, not rounded, like ImageryClient's colors_to_uint8.
    return (255 * np.clip(rgb, 0, 1)).astype(np.uint8)


def _read_only(array: UInt8Array) -> UInt8Array:
    """Return a contiguous array with its write flag cleared, because caches return it again."""
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array


@functools.lru_cache(maxsize=64)
def colormap(name: str) -> tuple[UInt8Array, bool]:
    """Return the colours of a colormap, and whether they are qualitative (a list) rather than a ramp."""
    import colorcet
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if name == "colorblind":
        return _read_only(np.array([parse_color(color)[:3] for color in _OKABE_ITO], dtype=np.uint8)), True
    plain = name.removeprefix("cet_")
    if plain == name and name in colormaps:
        cmap = colormaps[name]
        floats = cmap(np.arange(cmap.N))[:, :3]
        listed = isinstance(cmap, ListedColormap) and cmap.N < 256
        return _read_only(np.rint(255 * floats).astype(np.uint8)), listed
    forward = plain if plain in colorcet.palette else plain.removesuffix("_r")
    if forward not in colorcet.palette:
        raise ColorError(_unknown_palette(name, [*colormaps, *colorcet.palette]))
    table = np.array([parse_color(color)[:3] for color in colorcet.palette[forward]], dtype=np.uint8)
    return _read_only(table if forward == plain else table[::-1]), forward.startswith("glasbey")


def _unknown_palette(name: str, maps: Iterable[str]) -> str:
    close = suggest_names(name, ["stable", "neuroglancer", "husl", "hls", "colorblind", *maps])
    try:
        parse_color(name)
        hint = f" It is a colour: to give all ids this colour, write dict.fromkeys(ids, {name!r})."
    except ColorError:
        hint = ""
    return (
        f"there is no palette {name!r}{close}. Palettes are 'stable', 'neuroglancer', 'husl', 'hls', 'colorblind', "
        "every colorcet name ('glasbey', 'fire', …) and every Matplotlib colormap ('tab10', 'viridis', …)." + hint
    )


@functools.cache
def stable_table() -> UInt8Array:
    """Return the colours of the palette ``"stable"``: uint8 (1018, 3), read-only.

    An id has row ``splitmix64(id) % len(table)``, on every machine and in every version. The colours are points of a
    body-centred cubic lattice in CIELAB, at least 6.9 apart. Only colours of medium lightness and high chroma are used:
    they are distinct from the black, grey and white of electron microscopy.
    """
    spacing, reach = 9.0, 20
    steps = np.arange(-reach, reach + 1)
    corners = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    # The shift avoids points exactly on a limit below, where rounding errors would decide.
    lab = np.concatenate([corners, corners + 0.5]) * spacing + [61.5, 0.37, 0.11]
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    rgb = lab_to_rgb(lab[(lightness >= 35) & (lightness <= 88) & (chroma >= 40)])
    visible = ((rgb >= 0) & (rgb <= 1)).all(axis=1)
    return _read_only(np.rint(255 * rgb[visible]).astype(np.uint8))


def palette_table(name: str, hsl: HSL = _IMAGERYCLIENT_HSL) -> UInt8Array:
    """Return the table of colours from which the hash of an id selects, for palettes of unknown ids."""
    if name == "stable":
        return stable_table()
    if name in ("husl", "hls"):
        return ranked_colors(name, 256, hsl)
    if name == "neuroglancer":
        return neuroglancer_colors(np.arange(1, 513, dtype=np.uint64), 0)
    table, listed = colormap(name)
    return table if listed else ranked_colors(name, 256)
