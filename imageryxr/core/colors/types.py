"""Colours of segments by their type: those of a table of cell types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imageryxr.core.colors.ids import UInt8Array
from imageryxr.core.colors.parse import RGB
from imageryxr.core.validate import suggest_names
from imageryxr.errors import ColorError, OptionError


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


def palette_by_type(table: Any, by: str, id: str, colors_of_rank: Callable[[int], UInt8Array]) -> TypePalette:
    """Return the colours of the ids of a table by their type; ids without a type are left out."""
    from imageryxr.core.annotations import property_values  # imports xarray

    names = [str(name) for name in getattr(table, "columns", table)]
    for name, argument in ((by, "by"), (id, "id")):
        if name not in names:
            raise OptionError(
                f"{argument}={name!r} is not a column of the table{suggest_names(str(name), names)}; its columns are "
                f"{names[:12]}"
            )
    ids, kinds = property_values(table[id], "id"), property_values(table[by])
    if ids.dtype.kind not in "iu":
        raise OptionError(f"the column id={id!r} holds {ids.dtype} values, which are not segment ids")
    found: dict[int, str] = {}
    for segment, kind in zip(ids.tolist(), kinds.tolist(), strict=True):
        if not segment or kind is None or kind != kind:
            continue
        if found.setdefault(segment, str(kind)) != str(kind):
            raise ColorError(
                f"the segment {segment} has the types {found[segment]!r} and {str(kind)!r} in the column {by!r}; "
                "remove one of its rows"
            )
    types = sorted(set(found.values()))
    table_rgb = colors_of_rank(len(types)).tolist()
    chosen: dict[str, RGB] = {kind: (r, g, b) for kind, (r, g, b) in zip(types, table_rgb, strict=True)}
    return TypePalette({segment: chosen[kind] for segment, kind in found.items()}, chosen)
