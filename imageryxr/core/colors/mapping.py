"""The colours of all segments of a layer as one immutable value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from imageryxr.core.colors.ids import (
    UInt8Array,
    UInt64Array,
    hash_rows,
    list_unique_ids,
    neuroglancer_colors,
    neuroglancer_seed,
    parse_id,
    parse_key,
    unique_id_array,
)
from imageryxr.core.colors.palettes import palette_colors, palette_table, spec_advice
from imageryxr.core.colors.parse import RGBA, parse_color
from imageryxr.errors import ColorError, Message, param, warn

#: Values of ``colors=``: None, a palette name, a dict id → colour, or ``("neuroglancer", seed)``.
ColorSpec: TypeAlias = str | Mapping[Any, Any] | tuple[str, int] | None


@dataclass(frozen=True, eq=False)
class Colors:
    """The colour of every segment, as a value that can be hashed and pickled.

    An id in `ids` has the colour in `rgb`. Depending on `mode`, any other id has a row of `fallback` or its
    Neuroglancer colour. Without a fallback it is not drawn. The background, 0, is never drawn.

    Attributes
    ----------
    ids : uint64 array, shape (n,)
        Distinct ids with explicit colours, without 0.
    rgb : uint8 array, shape (n, 3)
        The colours of `ids`.
    alpha : uint8 array, shape (n,), or None
        The alpha of each colour, which multiplies (as alpha / 255) the alpha of the layer; None if all are 255.
    fallback : uint8 array, shape (m, 3)
        In mode ``"table"``, the colours of all other ids: row ``splitmix64(id) % m``. If m is 0 they are not drawn.
    mode : {"table", "neuroglancer"}
        How the colours of other ids are determined.
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
                # Copy the array: if the caller modified it later, the colours would change but the token would not.
                array = np.array(value, dtype=dtype, order="C")
                array.setflags(write=False)
                object.__setattr__(self, name, array)

    @property
    def shows_all(self) -> bool:
        """Whether every id has a colour, not only those in `ids`."""
        return self.mode == "neuroglancer" or len(self.fallback) > 0

    def is_shown(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return whether each id is drawn; bool, shape (n,)."""
        wanted = _flatten_ids(ids)
        known: npt.NDArray[np.bool_] = self._find_ids(wanted) >= 0
        shown: npt.NDArray[np.bool_] = (wanted != 0) & (known | self.shows_all)
        return shown

    def colors_for(self, ids: npt.ArrayLike) -> UInt8Array:
        """Return the colour of each id, uint8 (n, 3); ids that are not drawn are black.

        >>> resolve_colors({5: "red"}).colors_for([5, 6]).tolist()
        [[255, 0, 0], [0, 0, 0]]
        """
        wanted = _flatten_ids(ids)
        if self.mode == "neuroglancer":
            out = neuroglancer_colors(wanted, self.seed)
        elif len(self.fallback):
            out = self.fallback[hash_rows(wanted, len(self.fallback))]
        else:
            out = np.zeros((len(wanted), 3), np.uint8)
        places = self._find_ids(wanted)
        out[places >= 0] = self.rgb[places[places >= 0]]
        out[wanted == 0] = 0
        return out

    def alphas_for(self, ids: npt.ArrayLike) -> UInt8Array:
        """Return the alpha of the colour of each id: uint8, shape (n,), 0 for ids that are not drawn."""
        wanted = _flatten_ids(ids)
        out = np.where(self.is_shown(wanted), 255, 0).astype(np.uint8)
        if self.alpha is not None:
            places = self._find_ids(wanted)
            out[places >= 0] = self.alpha[places[places >= 0]]
        return out

    def in_one_color(self, rgb: Sequence[int]) -> Colors:
        """Return colours that draw the same ids with the same alphas, all in one colour."""
        one = np.array([rgb], np.uint8)
        return Colors(self.ids, one.repeat(len(self.ids), axis=0), self.alpha, one if self.shows_all else one[:0])

    def _find_ids(self, wanted: UInt64Array) -> npt.NDArray[np.intp]:
        """Return the position of each id in `ids`, or -1."""
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


def _flatten_ids(ids: npt.ArrayLike) -> UInt64Array:
    # A list is converted item by item, because NumPy converts [5, 2**63] to floats.
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        return ids.ravel().astype(np.uint64, copy=False)
    values = ids if isinstance(ids, Iterable) else [ids]
    return np.array([parse_id(value) for value in values], dtype=np.uint64)


def resolve_colors(colors: ColorSpec, ids: Any = None) -> Colors:
    """Return the colours of all segments for a value of ``colors=``, without reading data.

    Parameters
    ----------
    colors : None, str, mapping or ("neuroglancer", seed)
        - None or ``"stable"``: a colour that depends on the id alone;
        - a mapping id → colour: ids are ints or strings of digits, colours have any form that `parse_color` accepts;
        - ``"neuroglancer"``, or ``("neuroglancer", seed)`` with the layer's ``segmentColorSeed``: the viewer's colours;
        - any other name of a `palette`.
    ids : iterable of int, optional
        The ids to draw. None draws the ids of a mapping, or, for any other value of ``colors``, every id. In the latter
        case the ids are unknown until the data are read, so a palette that depends on the rank of an id serves as a
        table of colours (256 colours of a ramp or of a circle of hues, or the list itself). The hash of an id selects
        its colour: it is the same wherever the id occurs, but two ids may share a colour (likely with ``"tab10"``).

    Returns
    -------
    Colors

    Raises
    ------
    ColorError
        If a palette or colour is unknown, or the mapping has no colour for an id.

    Warns
    -----
    ImageryWarning
        If all colours are ints of 0 and 1: these are nearly black, because ints range from 0 to 255.

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
    seed = neuroglancer_seed(colors)
    if ids is None and seed is not None:
        return Colors(mode="neuroglancer", seed=seed)
    name = "stable" if colors is None else colors
    if seed is None and not isinstance(name, str):
        raise ColorError(Message(param("colors", colors), spec_advice(colors)))
    if ids is None:
        return Colors(fallback=palette_table(str(name)))
    wanted = unique_id_array(ids)
    return Colors(wanted, neuroglancer_colors(wanted, seed) if seed is not None else palette_colors(str(name), wanted))


def _from_mapping(colors: Mapping[Any, Any], ids: Any) -> Colors:
    parsed: dict[int, RGBA] = {}
    for key, value in colors.items():
        segment = parse_key(key)
        if segment in parsed:
            raise ColorError(f"colors has the id {segment} twice, as a number and as a string; remove one of them.")
        try:
            parsed[segment] = parse_color(value)
        except ColorError as error:
            raise ColorError(f"colors[{key!r}]: {error}") from None
    _warn_nearly_black(colors)
    wanted = list(parsed) if ids is None else list_unique_ids(ids)
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


def _warn_nearly_black(colors: Mapping[Any, Any]) -> None:
    """Warn if all colours are ints of 0 and 1, which ImageryClient read as floats: there, (0, 1, 1) was cyan."""
    ints = [parts for parts in map(_int_parts, colors.values()) if parts]
    if not ints or not all(part in (0, 1) for parts in ints for part in parts) or not any(map(any, ints)):
        return
    example = next(parts for parts in ints if any(parts))
    floats = tuple(float(part) for part in example)
    warn(
        f"all colours are ints of 0 and 1, such as {example}; ints range from 0 to 255, so these are nearly black. "
        f"Write floats, such as {floats}, for the range 0 to 1."
    )


def _int_parts(value: Any) -> tuple[int, ...]:
    parts = () if isinstance(value, str) else tuple(value)
    return tuple(int(part) for part in parts) if all(isinstance(part, (int, np.integer)) for part in parts) else ()
