"""Colours: reading one, choosing one per segment, and the value that overlays paint from.

Nothing here reads data. Matplotlib, colorcet and hsluv load inside the functions that need them.
"""

from __future__ import annotations

import difflib
import functools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from imageryxr.errors import ColorError, ImageryWarning, LayerError, OptionError

RGB: TypeAlias = tuple[int, int, int]
RGBA: TypeAlias = tuple[int, int, int, int]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]

#: What ``colors=`` takes: None, a palette name, a dict id → colour, or ``("neuroglancer", seed)``.
ColorSpec: TypeAlias = str | Mapping[Any, Any] | tuple[str, int] | None

MAX_ID = 2**64 - 1
MAX_SEED = 2**32 - 1
FORMS = "a name ('red', 'tab:blue'), a hex string ('#1f77b4'), 3 or 4 floats 0–1, or 3 or 4 ints 0–255"


# --- one colour -------------------------------------------------------------------------------------------


def parse_color(value: Any) -> RGBA:
    """Read one colour as red, green, blue, alpha.

    Parameters
    ----------
    value : str or sequence of 3 or 4 numbers
        - a CSS or Matplotlib name: ``"red"``, ``"tab:blue"``, ``"xkcd:sky blue"``; ``"none"`` is transparent;
        - a hex string: ``"#rgb"``, ``"#rgba"``, ``"#rrggbb"`` or ``"#rrggbbaa"``;
        - floats from 0 to 1, as soon as one of the numbers is a float: ``(1.0, 0, 0)`` is red;
        - ints from 0 to 255, when every number is an int: ``(1, 0, 0)`` is nearly black.

        A tuple, a list and a NumPy array are read alike.

    Returns
    -------
    tuple of int
        ``(r, g, b, a)``, each 0–255, straight alpha; ``a`` is 255 where none was given.

    Raises
    ------
    ColorError
        For anything else, and for numbers outside their range.

    Examples
    --------
    >>> parse_color("tab:blue")
    (31, 119, 180, 255)
    >>> parse_color((1.0, 0.5, 0))
    (255, 128, 0, 255)
    >>> parse_color("#ff000080")
    (255, 0, 0, 128)
    """
    if isinstance(value, str):
        return _named_color(value)
    parts = _components(value)
    if len(parts) not in (3, 4):
        raise ColorError(
            f"a colour has 3 numbers (r, g, b) or 4 (r, g, b, a); {value!r} has {len(parts)}. Write {FORMS}."
        )
    floats = any(isinstance(part, float) for part in parts)
    top = 1 if floats else 255
    if not all(0 <= part <= top for part in parts):
        raise ColorError(_range_message(value, floats))
    scaled = [round(255 * part) if floats else int(part) for part in parts]
    r, g, b, a = scaled if len(scaled) == 4 else [*scaled, 255]
    return r, g, b, a


def _components(value: Any) -> list[int | float]:
    """List the numbers of a colour, each a Python int or float, so that one rule reads them all."""
    if isinstance(value, (bytes, Mapping, set, frozenset)) or not isinstance(value, Iterable):
        raise ColorError(f"{value!r} is not a colour. Write {FORMS}.")
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise ColorError(f"an array of shape {value.shape} is not one colour, which has shape (3,) or (4,).")
    parts: list[int | float] = []
    for part in value:
        if isinstance(part, (int, np.integer)) and not isinstance(part, bool):
            parts.append(int(part))
        elif isinstance(part, (float, np.floating)):
            parts.append(float(part))
        else:
            kind = type(part).__name__
            raise ColorError(f"{value!r} is not a colour: {part!r} is a {kind}, not a number. Write {FORMS}.")
    return parts


def _range_message(value: Any, floats: bool) -> str:
    if floats:
        return (
            f"the colour {value!r} has a float, so all of its numbers count from 0 to 1, and not all are there. "
            "Write ints for 0–255, such as (255, 0, 0), or floats for 0–1, such as (1.0, 0.0, 0.0)."
        )
    return f"the colour {value!r} has ints, which count from 0 to 255, and not all are there. Write {FORMS}."


def _named_color(value: str) -> RGBA:
    name = value.strip().lower()
    if name.startswith("#"):
        digits = name[1:]
        if not re.fullmatch(r"([0-9a-f]{3,4}|[0-9a-f]{6}|[0-9a-f]{8})", digits):
            raise ColorError(
                f"{value!r} is not a hex colour. Write '#rgb', '#rgba', '#rrggbb' or '#rrggbbaa', hex digits only."
            )
        if len(digits) < 6:
            digits = "".join(2 * digit for digit in digits)
        r, g, b, *a = bytes.fromhex(digits)
        return r, g, b, a[0] if a else 255
    if name == "none":
        return 0, 0, 0, 0
    from matplotlib.colors import get_named_colors_mapping, to_rgb

    # Not all that Matplotlib's to_rgba reads: "C0" depends on the style in use, and "0.5" is a grey to it alone.
    names = get_named_colors_mapping()
    if name in names:
        r, g, b = (round(255 * part) for part in to_rgb(names[name]))
        return r, g, b, 255
    if re.fullmatch(r"[0-9a-f]{6}([0-9a-f]{2})?", name):
        raise ColorError(f"{value!r} is not a colour name. If it is a hex colour, write '#{name}'.")
    raise ColorError(f"{value!r} is not a colour name{_close(name, names)}. Write {FORMS}.")


def _close(name: str, names: Iterable[str]) -> str:
    by_fold = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), by_fold, n=3)
    return f" (did you mean {' or '.join(repr(by_fold[match]) for match in close)}?)" if close else ""


# --- ids --------------------------------------------------------------------------------------------------


def _id_of(value: Any) -> int:
    """Read one id exactly; a float has already lost digits, so it is refused."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if 0 <= value <= MAX_ID:
            return int(value)
        raise OptionError(f"{value} is not a segment id: ids are whole numbers from 0 to 2**64 - 1.")
    raise LayerError(
        f"{value!r} ({type(value).__name__}) is not a segment id. Write ids as ints, such as 864691135617152361; "
        "a float cannot hold one beyond 2**53."
    )


def _unique_ids(ids: Any) -> list[int]:
    """List ids in the order given, each once, without the background."""
    if isinstance(ids, (str, bytes, np.generic)) or not (isinstance(ids, Iterable) or hasattr(ids, "__array__")):
        raise LayerError(f"ids={ids!r} is no series of ids. Write a list, such as [864691135617152361].")
    if hasattr(ids, "__array__"):
        flat = np.asarray(ids).ravel()
        if flat.dtype.kind in "iu":
            values, first = np.unique(flat, return_index=True)
            ids = values[np.argsort(first)].tolist()
        elif flat.dtype.kind == "O" or not flat.size:
            ids = flat.tolist()
        else:
            raise LayerError(
                f"an array of {flat.dtype} holds no segment ids, which are integers. If floats were made of them, "
                "digits beyond 2**53 are lost: read the ids again, as uint64."
            )
    return [segment for segment in dict.fromkeys(_id_of(value) for value in ids) if segment]


def _as_ids(ids: Any) -> UInt64Array:
    return np.array(_unique_ids(ids), dtype=np.uint64)


def _splitmix64(ids: UInt64Array) -> UInt64Array:
    """Mix the bits of ids: the finaliser of SplitMix64 (Steele, Lea and Flood 2014; constants by Stafford)."""
    z = ids + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _rows(ids: UInt64Array, count: int) -> npt.NDArray[np.intp]:
    """Give the row of a table with ``count`` colours that each id has."""
    return (_splitmix64(np.atleast_1d(ids)) % np.uint64(count)).astype(np.intp)


# --- palettes ---------------------------------------------------------------------------------------------


def palette(
    ids: Any,
    name: str = "husl",
    *,
    h: float | None = None,
    s: float | None = None,
    l: float | None = None,  # noqa: E741  (ImageryClient's keyword, which people have in their notebooks)
) -> dict[int, RGB]:
    """Choose a colour for each id.

    Reads nothing, unless `ids` is a lazy array, which is computed whole (`unique_ids` is the better way).

    Parameters
    ----------
    ids : iterable of int, or integer array of any shape
        Segment ids up to 2**64 - 1. The background, 0, is skipped; an id given twice counts once.
    name : str, default "husl"
        Which colours, and what they depend on:

        - ``"stable"``: each colour depends on its id alone, so that figures made on different days agree. It is
          what `overlay` uses by default. Among many ids some come close to each other;
        - ``"neuroglancer"``: as Neuroglancer shows the id with colour seed 0, so that a figure matches the viewer;
        - ``"husl"``: hues spread evenly over the ids at one lightness, for up to a dozen segments that should
          be as distinct, and as prominent, as can be. Adding an id changes the colours of the others, as for all
          palettes below. The same colours as ImageryClient's default;
        - ``"hls"``: likewise, more garish, the hues less even to the eye;
        - ``"glasbey"``, ``"glasbey_light"``, … (colorcet): 256 colours in order, each as far as can be from those
          before; for dozens of segments;
        - ``"tab10"``, ``"Set1"``, … (Matplotlib's qualitative colormaps): in order, from the start again when used up;
        - any other colormap of Matplotlib (``"viridis"``) or colorcet (``"fire"``): sampled evenly, ends left out;
          for ids whose order means something. A name that both have is Matplotlib's, and ``cet_…`` colorcet's.
    h, s, l : float, optional
        First hue, saturation and lightness, from 0 to 1, of ``"husl"`` and ``"hls"``; by default 0.01, 1.0, 0.65.

    Returns
    -------
    dict of int to tuple of int
        ``{id: (r, g, b)}``, each 0–255, in the order of the ids.

    Raises
    ------
    ColorError
        For a palette that does not exist.
    LayerError
        For ids that are not whole numbers.
    OptionError
        For an id outside uint64, and for h, s, l outside 0–1 or with another palette.

    Examples
    --------
    >>> palette([864691135617152361, 5], "tab10")
    {864691135617152361: (31, 119, 180), 5: (255, 127, 14)}
    >>> palette([5], "stable") == {5: palette(range(100), "stable")[5]}
    True
    """
    hsl = _hue_options(name, h, s, l)
    known = _unique_ids(ids)
    colors = _colors_of(name, np.array(known, dtype=np.uint64), hsl).tolist()
    return {segment: (r, g, b) for segment, (r, g, b) in zip(known, colors, strict=True)}


HSL: TypeAlias = tuple[float, float, float]
_IMAGERYCLIENT_HSL: HSL = (0.01, 1.0, 0.65)


def _hue_options(name: Any, h: float | None, s: float | None, l: float | None) -> HSL:  # noqa: E741
    given = {key: value for key, value in (("h", h), ("s", s), ("l", l)) if value is not None}
    if given and name not in ("husl", "hls"):
        raise OptionError(
            f"{', '.join(given)} shape the palettes 'husl' and 'hls' only, and the palette is {name!r}. "
            "Leave them out, or write name='husl'."
        )
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
            raise OptionError(f"{key}={value!r} is not a number from 0 to 1.")
    first, saturation, lightness = _IMAGERYCLIENT_HSL
    return (
        first if h is None else float(h),
        saturation if s is None else float(s),
        lightness if l is None else float(l),
    )


def _colors_of(name: str, ids: UInt64Array, hsl: HSL = _IMAGERYCLIENT_HSL) -> UInt8Array:
    if not isinstance(name, str):
        raise ColorError(f"{name!r} is not the name of a palette. Write one, such as 'stable' or 'glasbey'.")
    if name == "stable":
        table = stable_table()
        return table[_rows(ids, len(table))]
    if name == "neuroglancer":
        return _neuroglancer_colors(ids, 0)
    return _ranked(name, len(ids), hsl)


def _ranked(name: str, count: int, hsl: HSL = _IMAGERYCLIENT_HSL) -> UInt8Array:
    """Give the first ``count`` colours of a palette that goes by rank."""
    if name in ("husl", "hls"):
        return _hues(name, count, hsl)
    table, listed = _colormap(name)
    if listed:
        return table[np.arange(count) % len(table)]
    # Seaborn's rule, and so ImageryClient's: evenly spaced, the extremes left out for contrast.
    places = np.linspace(0, 1, count + 2)[1:-1]
    return table[np.minimum((places * len(table)).astype(np.intp), len(table) - 1)]


def _hues(name: str, count: int, hsl: HSL) -> UInt8Array:
    import colorsys

    from hsluv import hsluv_to_rgb

    h, s, l = hsl  # noqa: E741
    hues = ((np.linspace(0, 1, count + 1)[:-1] + h) % 1).tolist()
    if name == "husl":
        # 359 and 99 are seaborn's, kept so that figures made with ImageryClient keep their colours.
        colors = [hsluv_to_rgb((hue * 359, s * 99, l * 99)) for hue in hues]
    else:
        colors = [colorsys.hls_to_rgb(hue, l, s) for hue in hues]
    rgb = np.array(colors, dtype=np.float64).reshape(-1, 3)
    # Truncated, not rounded, as in ImageryClient's colors_to_uint8.
    return (255 * np.clip(rgb, 0, 1)).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _colormap(name: str) -> tuple[UInt8Array, bool]:
    """Find a colormap by name: its colours, and whether they are a list rather than a ramp."""
    import colorcet
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

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
    close = _close(name, ["stable", "neuroglancer", "husl", "hls", *maps])
    try:
        parse_color(name)
        hint = f" It is a colour: to give each id the same, write dict.fromkeys(ids, {name!r})."
    except ColorError:
        hint = ""
    return (
        f"there is no palette {name!r}{close}. Palettes are 'stable', 'neuroglancer', 'husl', 'hls', "
        "every colorcet name ('glasbey', 'fire', …) and every Matplotlib colormap ('tab10', 'viridis', …)." + hint
    )


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array


@functools.cache
def stable_table() -> UInt8Array:
    """Return the colours of the palette ``"stable"``.

    An id has row ``splitmix64(id) % len(table)``, on every machine and in every version. The colours are the
    points of a body-centred cubic lattice in CIELAB (the layout that keeps a given number of points farthest
    apart), no two nearer than 6.9, as far as they are of medium lightness and well away from grey: they stand
    out over electron microscopy, and none is mistaken for its black, grey and white.

    Returns
    -------
    uint8 array, shape (1018, 3)
        Read-only red, green, blue.

    Examples
    --------
    >>> stable_table().shape
    (1018, 3)
    """
    spacing, reach = 9.0, 20
    steps = np.arange(-reach, reach + 1)
    corners = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    # Off the grey axis, so that no point lies on a limit where a last digit would decide.
    lab = np.concatenate([corners, corners + 0.5]) * spacing + [61.5, 0.37, 0.11]
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    rgb = _lab_to_rgb(lab[(lightness >= 35) & (lightness <= 88) & (chroma >= 40)])
    visible = ((rgb >= 0) & (rgb <= 1)).all(axis=1)
    return _read_only(np.rint(255 * rgb[visible]).astype(np.uint8))


def _lab_to_rgb(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert CIELAB (D65) to sRGB; what sRGB cannot show falls outside 0–1."""
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], axis=1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.95047, 1.0, 1.08883]
    linear = xyz @ np.array(
        [
            [3.2404542, -0.9692660, 0.0556434],
            [-1.5371385, 1.8760108, -0.2040259],
            [-0.4985314, 0.0415560, 1.0572252],
        ]
    )
    curved: npt.NDArray[np.float64] = 1.055 * np.clip(linear, 0, None) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved)


# --- Neuroglancer's hash ----------------------------------------------------------------------------------


def _combine(state: npt.NDArray[np.uint32], word: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Fold one 32-bit word into a hash, as MurmurHash3 does with each of its blocks."""

    def rotate(x: npt.NDArray[np.uint32], by: int) -> npt.NDArray[np.uint32]:
        return (x << np.uint32(by)) | (x >> np.uint32(32 - by))

    mixed = rotate(word * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    return rotate(state ^ mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def _neuroglancer_colors(ids: UInt64Array, seed: int) -> UInt8Array:
    """Colour ids as Neuroglancer's SegmentColorHash does: low word, then high, then hue and saturation."""
    ids = np.atleast_1d(ids)
    low, high = (ids & np.uint64(MAX_SEED)).astype(np.uint32), (ids >> np.uint64(32)).astype(np.uint32)
    mixed = _combine(_combine(np.full(low.shape, seed, dtype=np.uint32), low), high)
    hue = (mixed & np.uint32(0xFF)) / 255.0 * 6
    saturation = 0.5 + 0.5 * ((mixed >> np.uint32(8) & np.uint32(0xFF)) / 255.0)
    sextant = np.floor(hue)
    within = hue - sextant
    full, least = np.ones_like(hue), 1 - saturation
    falling, rising = 1 - saturation * within, 1 - saturation * (1 - within)
    sixth = sextant.astype(np.intp) % 6
    red = np.choose(sixth, [full, falling, least, least, rising, full])
    green = np.choose(sixth, [rising, full, full, falling, least, least])
    blue = np.choose(sixth, [least, least, rising, full, full, falling])
    rgb: UInt8Array = np.rint(255 * np.stack([red, green, blue], axis=-1)).astype(np.uint8)
    return rgb


# --- what an overlay paints from --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Colors:
    """The colour of every segment, as a value that can be hashed, pickled and sent to a worker.

    An id is looked up in `ids` first. One that is not there takes, by `mode`, a row of `fallback`, or its
    Neuroglancer colour. If there is no fallback it is not shown. The background, 0, never is.

    Attributes
    ----------
    ids : uint64 array, shape (n,)
        Ids with a colour of their own, each once, without 0, in the order given.
    rgb : uint8 array, shape (n, 3)
        Their colours.
    alpha : uint8 array, shape (n,), or None
        How opaque each is, as a share (of 255) of the layer's alpha; None where all are 255.
    fallback : uint8 array, shape (m, 3)
        In mode ``"table"``, the colours of all other ids: row ``splitmix64(id) % m``. With m = 0 they are not shown.
    mode : {"table", "neuroglancer"}
        Where the colours of other ids come from.
    seed : int
        The seed of mode ``"neuroglancer"``, otherwise 0.
    """

    ids: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    rgb: UInt8Array = field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    alpha: UInt8Array | None = None
    fallback: UInt8Array = field(default_factory=lambda: np.zeros((0, 3), np.uint8))
    mode: Literal["table", "neuroglancer"] = "table"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, dtype in (("ids", np.uint64), ("rgb", np.uint8), ("alpha", np.uint8), ("fallback", np.uint8)):
            value = getattr(self, name)
            if value is not None:
                # A copy, for a caller's array that changed later would change a colour, and no token.
                object.__setattr__(self, name, _read_only(np.array(value, dtype=dtype)))

    @property
    def shows_all(self) -> bool:
        """Whether every id has a colour, not only those in `ids`."""
        return self.mode == "neuroglancer" or len(self.fallback) > 0

    def shows(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Tell for each id whether it is painted; bool, shape (n,)."""
        wanted = _flat(ids)
        known: npt.NDArray[np.bool_] = self._places(wanted) >= 0
        shown: npt.NDArray[np.bool_] = (wanted != 0) & (known | self.shows_all)
        return shown

    def colors_for(self, ids: npt.ArrayLike) -> UInt8Array:
        """Give the colour of each id, in every mode; those not shown, and 0, are black.

        Parameters
        ----------
        ids : uint64 array, flattened to shape (n,)

        Returns
        -------
        uint8 array, shape (n, 3)

        Examples
        --------
        >>> resolve_colors({5: "red"}).colors_for([5, 6]).tolist()
        [[255, 0, 0], [0, 0, 0]]
        """
        wanted = _flat(ids)
        if self.mode == "neuroglancer":
            out = _neuroglancer_colors(wanted, self.seed)
        elif len(self.fallback):
            out = self.fallback[_rows(wanted, len(self.fallback))]
        else:
            out = np.zeros((len(wanted), 3), np.uint8)
        places = self._places(wanted)
        out[places >= 0] = self.rgb[places[places >= 0]]
        out[wanted == 0] = 0
        return out

    def alphas_for(self, ids: npt.ArrayLike) -> UInt8Array:
        """Give the share (of 255) of the layer's alpha that each id has: uint8, shape (n,), 0 where not shown."""
        wanted = _flat(ids)
        out = np.where(self.shows(wanted), 255, 0).astype(np.uint8)
        if self.alpha is not None:
            places = self._places(wanted)
            out[places >= 0] = self.alpha[places[places >= 0]]
        return out

    def _places(self, wanted: UInt64Array) -> npt.NDArray[np.intp]:
        """Find where in `ids` each id stands, -1 where it does not."""
        if not len(self.ids):
            return np.full(len(wanted), -1, np.intp)
        order = np.argsort(self.ids)
        found = order[np.minimum(np.searchsorted(self.ids, wanted, sorter=order), len(order) - 1)]
        return np.where(self.ids[found] == wanted, found, -1)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        arrays = (self.ids, self.rgb, self.alpha, self.fallback)
        return ("imageryxr.Colors", self.mode, self.seed, *(None if a is None else a.tobytes() for a in arrays))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Colors):
            return NotImplemented
        return self.__dask_tokenize__() == other.__dask_tokenize__()

    def __hash__(self) -> int:
        return hash(self.__dask_tokenize__())

    def __repr__(self) -> str:
        rest = f"Neuroglancer's, seed {self.seed}" if self.mode == "neuroglancer" else f"{len(self.fallback)} by hash"
        return f"<Colors of {len(self.ids)} ids; others: {rest if self.shows_all else 'not shown'}>"


def _flat(ids: npt.ArrayLike) -> UInt64Array:
    # The usual caller has uint64 already; a list goes one by one, for NumPy makes floats of [5, 2**63].
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        return ids.ravel().astype(np.uint64, copy=False)
    values = ids if isinstance(ids, Iterable) else [ids]
    return np.array([_id_of(value) for value in values], dtype=np.uint64)


def resolve_colors(colors: ColorSpec, ids: Any = None) -> Colors:
    """Make of what people write as ``colors=`` the value that an overlay paints from; reads no data.

    Parameters
    ----------
    colors : None, str, mapping or ("neuroglancer", seed)
        - None or ``"stable"``: a colour that depends on the id alone;
        - a mapping id → colour: an id is an int or a string of digits, a colour what `parse_color` reads;
        - ``"neuroglancer"``, or ``("neuroglancer", seed)`` with the layer's ``segmentColorSeed``: as the viewer does;
        - any other name of a `palette`.
    ids : iterable of int, optional
        The ids to show. None shows all those that `colors` says something about: those of a mapping, and every
        id otherwise. What ids there are is not known before the data are read, so a palette that goes by rank
        is then taken as a table of colours (256 of a ramp or circle of hues, or the list itself), from which the
        hash of an id picks: the same wherever it occurs, but two ids may share a colour (of ``"tab10"``, soon do).

    Returns
    -------
    Colors

    Raises
    ------
    ColorError
        For a palette or colour that cannot be read, and for ids that the mapping has no colour for.

    Warns
    -----
    ImageryWarning
        If colours are ints of 0 and 1 only: on the scale of 0–255, nearly black.

    Examples
    --------
    >>> resolve_colors(None)
    <Colors of 0 ids; others: 1018 by hash>
    >>> resolve_colors({5: "red", "864691135617152361": "#00ff0080"}).alpha
    array([255, 128], dtype=uint8)
    >>> resolve_colors("tab10", [7, 5]).rgb.tolist()
    [[31, 119, 180], [255, 127, 14]]
    """
    if isinstance(colors, Mapping):
        return _from_mapping(colors, ids)
    seed = _neuroglancer_seed(colors)
    if ids is None and seed is not None:
        return Colors(mode="neuroglancer", seed=seed)
    name = "stable" if colors is None else colors
    if seed is None and not isinstance(name, str):
        raise ColorError(_spec_message(colors))
    if ids is None:
        return Colors(fallback=_palette_table(str(name)))
    wanted = _as_ids(ids)
    return Colors(wanted, _neuroglancer_colors(wanted, seed) if seed is not None else _colors_of(str(name), wanted))


def _palette_table(name: str) -> UInt8Array:
    if name == "stable":
        return stable_table()
    if name in ("husl", "hls"):
        return _ranked(name, 256)
    table, listed = _colormap(name)
    return table if listed else _ranked(name, 256)


def _neuroglancer_seed(colors: Any) -> int | None:
    if isinstance(colors, str):
        return 0 if colors == "neuroglancer" else None
    if not (isinstance(colors, (tuple, list)) and len(colors) == 2 and isinstance(colors[0], str)):
        return None
    name, seed = colors
    if name != "neuroglancer":
        raise ColorError(f"colors={colors!r}: only 'neuroglancer' takes a seed. Write ('neuroglancer', 0) or {name!r}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
        raise ColorError(
            f"colors={colors!r}: a seed is a whole number from 0 to 2**32 - 1, as in the layer's "
            "'segmentColorSeed'. Write ('neuroglancer', 0) for the viewer's own colours."
        )
    return int(seed)


def _spec_message(colors: Any) -> str:
    kinds = "a palette name, a dict id → colour, 'neuroglancer' or ('neuroglancer', seed)"
    hint = ""
    if isinstance(colors, (Sequence, np.ndarray)):
        hint = " A list of colours does not say whose they are: write dict(zip(ids, colors)); for one colour for all, "
        hint += "dict.fromkeys(ids, color)."
    elif hasattr(colors, "to_dict"):
        hint = " Write colors.to_dict()."
    return f"colors={colors!r} ({type(colors).__name__}) is none of {kinds}.{hint}"


def _from_mapping(colors: Mapping[Any, Any], ids: Any) -> Colors:
    parsed: dict[int, RGBA] = {}
    for key, value in colors.items():
        segment = _key_of(key)
        if segment in parsed:
            raise ColorError(f"colors names the id {segment} twice, as a number and as a string; leave one out.")
        try:
            parsed[segment] = parse_color(value)
        except ColorError as error:
            raise ColorError(f"colors[{key!r}]: {error}") from None
    _warn_nearly_black(colors)
    wanted = list(parsed) if ids is None else _unique_ids(ids)
    missing = [segment for segment in wanted if segment not in parsed]
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise ColorError(
            f"colors has no colour for {len(missing)} of the {len(wanted)} ids: {shown}. Add them, leave them out of "
            "ids, or start from a palette: colors = imageryxr.palette(ids) | colors."
        )
    rgba = np.array([parsed[segment] for segment in wanted], dtype=np.uint8).reshape(-1, 4)
    alpha = rgba[:, 3]
    return Colors(np.array(wanted, dtype=np.uint64), rgba[:, :3], None if (alpha == 255).all() else alpha)


def _key_of(key: Any) -> int:
    if isinstance(key, str):
        if not re.fullmatch(r"[0-9]+", key):
            raise ColorError(f"colors has the key {key!r}, which is no id. Write ids as ints or strings of digits.")
        key = int(key)
    if not isinstance(key, (int, np.integer)) or isinstance(key, bool) or not 0 <= key <= MAX_ID:
        raise ColorError(
            f"colors has the key {key!r} ({type(key).__name__}), which is no id. Ids are ints from 1 to 2**64 - 1, or "
            "strings of their digits; a float cannot hold them."
        )
    if key == 0:
        raise ColorError("colors has the key 0, the background, which is never painted. Leave it out.")
    return int(key)


def _warn_nearly_black(colors: Mapping[Any, Any]) -> None:
    """Warn of a habit from ImageryClient, where (0, 1, 1) was cyan."""
    ints = [parts for parts in map(_int_parts, colors.values()) if parts]
    if not ints or not all(part in (0, 1) for parts in ints for part in parts) or not any(map(any, ints)):
        return
    example = next(parts for parts in ints if any(parts))
    floats = tuple(float(part) for part in example)
    warnings.warn(
        f"the colours are ints of 0 and 1 only, such as {example}; ints count to 255, so these are nearly black. "
        f"Write {floats} for the scale of 0 to 1.",
        ImageryWarning,
        stacklevel=4,
    )


def _int_parts(value: Any) -> tuple[int, ...]:
    parts = () if isinstance(value, str) else tuple(value)
    return tuple(int(part) for part in parts) if all(isinstance(part, (int, np.integer)) for part in parts) else ()
