"""What an overlay paints from: the colour of every segment, as one value."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from imageryxr.core.colors.ids import UInt8Array, UInt64Array, as_ids, hash_rows, id_of, key_of, read_only, unique_ids
from imageryxr.core.colors.neuroglancer import neuroglancer_colors, neuroglancer_seed
from imageryxr.core.colors.palettes import palette_colors, palette_table
from imageryxr.core.colors.parse import RGBA, parse_color
from imageryxr.errors import ColorError, ImageryWarning

#: What ``colors=`` takes: None, a palette name, a dict id → colour, or ``("neuroglancer", seed)``.
ColorSpec: TypeAlias = str | Mapping[Any, Any] | tuple[str, int] | None


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
                object.__setattr__(self, name, read_only(np.array(value, dtype=dtype)))

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
            out = neuroglancer_colors(wanted, self.seed)
        elif len(self.fallback):
            out = self.fallback[hash_rows(wanted, len(self.fallback))]
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
    return np.array([id_of(value) for value in values], dtype=np.uint64)


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
    seed = neuroglancer_seed(colors)
    if ids is None and seed is not None:
        return Colors(mode="neuroglancer", seed=seed)
    name = "stable" if colors is None else colors
    if seed is None and not isinstance(name, str):
        raise ColorError(_spec_message(colors))
    if ids is None:
        return Colors(fallback=palette_table(str(name)))
    wanted = as_ids(ids)
    return Colors(wanted, neuroglancer_colors(wanted, seed) if seed is not None else palette_colors(str(name), wanted))


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
        segment = key_of(key)
        if segment in parsed:
            raise ColorError(f"colors names the id {segment} twice, as a number and as a string; leave one out.")
        try:
            parsed[segment] = parse_color(value)
        except ColorError as error:
            raise ColorError(f"colors[{key!r}]: {error}") from None
    _warn_nearly_black(colors)
    wanted = list(parsed) if ids is None else unique_ids(ids)
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
