"""Rows of CAVE tables: their columns of positions and root ids, and queries for more rows than a request returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import BBox, Triple
from imageryxr.core.lazy_import import import_package
from imageryxr.core.validate import suggest_names
from imageryxr.errors import OptionError, ServerError, SourceError, param
from imageryxr.sources.cave.materialization import Materialization, Snapshot, TableInfo

if TYPE_CHECKING:
    import pyarrow as pa

PAGE = 50_000
"""Largest number of rows of a request, which is below the limits of CAVE's servers: more rows may exist if an answer
has as many."""

Mask = npt.NDArray[np.bool_]
Filters = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Column:
    """A column in the answer to a query, and the table that contains it."""

    label: str
    """Name in the answer; that of a position is without ``_x``, ``_y`` and ``_z``."""
    table: str
    name: str
    """Name in its table."""
    resolution: Triple
    """Nanometres per unit (x, y, z) of the positions of its table."""


@dataclass(frozen=True)
class TableReader:
    """A table or view at a snapshot, with the columns of the answers to its queries."""

    service: Materialization
    snapshot: Snapshot
    info: TableInfo
    columns: tuple[Column, ...]
    """All columns except those of positions."""
    positions: tuple[Column, ...]

    @property
    def roots(self) -> tuple[Column, ...]:
        """The columns of root ids."""
        return tuple(c for c in self.columns if c.label.removesuffix("_ref").endswith("root_id"))

    def position(self, given: str | None) -> Column:
        """Return the position column of a name, or the only one.

        Raises
        ------
        SourceError
            If there is none.
        OptionError
            If there are several, or none of this name.
        """
        if not self.positions:
            names = ", ".join(c.label for c in self.columns)
            raise SourceError(f"{self.info.name!r} has no position column, so it holds no annotations; it has {names}")
        labels = {c.label: c for c in self.positions}
        if given is not None:
            for name in (given, f"{given}_position"):
                if name in labels:
                    return labels[name]
            hint = suggest_names(str(given), labels)
            raise OptionError(
                f"{self.info.name!r} has no position column {given!r}{hint}; give ",
                param("position", text=" or ".join(map(repr, labels))),
            )
        # The corners of a bounding box, which some tables have in addition to a position, are not chosen.
        main = [label for label in labels if not label.startswith(("bb_start", "bb_end"))] or list(labels)
        if len(main) > 1:
            raise OptionError(
                f"{self.info.name!r} has several position columns; give ",
                param("position", text=" or ".join(map(repr, main))),
            )
        return labels[main[0]]

    def read(
        self,
        position: Column,
        bbox: BBox | None,
        roots: Sequence[int] | None,
        limit: int | None,
        keep: Callable[[Any], Mask],
    ) -> pa.Table:
        """Return at most `limit` rows with positions in a box and with one of `roots` in a column of root ids.

        `position` is the column of the positions. The service also returns rows on the border of the box, so `keep`
        returns a mask of the rows of an answer that lie in the box.
        """
        import pyarrow as pa

        filters: Filters = {}
        if bbox is not None:
            filters["filter_spatial_dict"] = {position.table: {position.name: _corners(bbox, position.resolution)}}
        parts: list[pa.Table] = []
        selections = [None] if roots is None else list(self.roots)
        if not selections:
            raise SourceError(
                f"{self.info.name!r} has no column of root ids, so ", param("ids"), " cannot select rows of it"
            )
        for number, column in enumerate(selections):
            earlier = [c.label for c in selections[:number] if c is not None]
            chosen = {} if column is None else {"filter_in_dict": {column.table: {column.name: list(roots or [])}}}

            def is_new(page: pa.Table, earlier: Sequence[str] = earlier) -> Mask:
                mask = keep(page)
                for label in earlier:  # leave out the rows that the query for an earlier column has returned
                    mask &= ~_isin(page.column(label), roots or [])
                return mask

            rest = None if limit is None else limit - sum(part.num_rows for part in parts)
            if rest is None or rest > 0:
                parts += self._pages({**filters, **chosen}, position.resolution, rest, is_new)
        found = pa.concat_tables(parts, promote_options="permissive")
        return found if limit is None else found.slice(0, limit)

    def _pages(
        self, filters: Filters, resolution: Triple, limit: int | None, keep: Callable[[Any], Mask]
    ) -> Iterator[pa.Table]:
        """Yield the rows of a query in several answers.

        If an answer fills a page, the query is repeated for two ranges of row ids. An offset would skip some rows and
        repeat others, because the service does not sort rows.
        """
        import pyarrow as pa

        import_package("tqdm")
        from tqdm.auto import tqdm

        todo: list[tuple[int | None, int | None]] = [(None, None)]
        count = 0
        with tqdm(unit=" rows", desc=self.info.name, disable=None, delay=2) as bar:
            while todo:
                lo, hi = todo.pop()
                size = PAGE if limit is None or lo is not None or hi is not None else min(PAGE, limit)
                page = self._query(_with_range(filters, self.info.name, lo, hi), size, resolution)
                is_full = page.num_rows >= size
                kept = page.filter(pa.array(keep(page)))
                if is_full and (limit is None or count + kept.num_rows < limit):
                    todo += self._split(page, lo, hi)
                    continue
                count += kept.num_rows
                bar.update(kept.num_rows)
                yield kept
                if limit is not None and count >= limit:
                    return

    def _query(self, filters: Filters, size: int, resolution: Triple) -> pa.Table:
        page = self.service.query(self.info, self.snapshot, filters, limit=size, resolution=resolution)
        expected = [c.label for c in self.roots] + [f"{p.label}_{axis}" for p in self.positions for axis in "xyz"]
        absent = [label for label in expected if label not in page.column_names]
        if absent:
            raise ServerError(f"{self.service.name} returned {self.info.name!r} without its column {absent[0]!r}")
        return page

    def _split(self, page: pa.Table, lo: int | None, hi: int | None) -> list[tuple[int | None, int | None]]:
        """Return the two ranges of row ids into which a range is cut, the lower one last."""
        if "id" not in page.column_names:
            raise OptionError(
                f"the answer of {self.info.name!r} has more than {page.num_rows:,} rows, and no row ids with which to "
                "read them in parts; give a smaller bbox, fewer ids or limit="
            )
        ids = np.unique(page.column("id").to_numpy())
        if len(ids) < 2 or (lo is not None and ids[0] < lo) or (hi is not None and ids[-1] >= hi):
            raise ServerError(f"{self.service.name} does not apply filters of row ids to {self.info.name!r}")
        middle = int(ids[len(ids) // 2])
        return [(middle, hi), (lo, middle)]


def open_table(service: Materialization, snapshot: Snapshot, name: str) -> TableReader:
    """Return the reader of a table or view; requests its description, and one row of it for its columns.

    Raises
    ------
    SourceNotFoundError, TimestampError, SourceError, AuthError, ServerError
        As in `Materialization.describe`.
    """
    info = service.describe(name, snapshot)
    tables = [replace(info, reference=None)]
    if info.reference is not None:
        tables.append(replace(service.describe(info.reference, snapshot), reference=None))
    names = [service.query(t, snapshot, {}, limit=1, resolution=t.resolution).column_names for t in tables]
    columns, positions = [], []
    for number, (table, stored) in enumerate(zip(tables, names, strict=True)):
        is_repeated = set(names[0]) if number else set()
        for column in stored:
            suffix = "_ref" if column in is_repeated else ""
            if not _is_part(column, stored):
                columns.append(Column(column + suffix, table.name, column, table.resolution))
            elif column.endswith("_x"):
                stem = column.removesuffix("_x")
                positions.append(Column(stem + suffix, table.name, stem, table.resolution))
    return TableReader(service, snapshot, info, tuple(columns), tuple(positions))


def _is_part(column: str, stored: Sequence[str]) -> bool:
    """Return whether a column is one of the three columns of a position."""
    return column[-2:] in ("_x", "_y", "_z") and not {f"{column[:-2]}_{axis}" for axis in "xyz"} - set(stored)


def _corners(bbox: BBox, resolution: Triple) -> list[list[int]]:
    """Return a box in whole units of a table's positions that contains it; the service includes its border."""
    lo = [math.floor(a / r) for a, r in zip(bbox.lo_nm, resolution, strict=True)]
    hi = [math.ceil(b / r) for b, r in zip(bbox.hi_nm, resolution, strict=True)]
    return [lo, [max(b, a + 1) for a, b in zip(lo, hi, strict=True)]]


def _with_range(filters: Filters, table: str, lo: int | None, hi: int | None) -> Filters:
    found = dict(filters)
    if lo is not None:
        found["filter_greater_equal_dict"] = {table: {"id": lo}}
    if hi is not None:
        found["filter_less_dict"] = {table: {"id": hi}}
    return found


def _isin(column: Any, values: Sequence[int]) -> Mask:
    import pyarrow as pa
    import pyarrow.compute as pc

    stored = pc.cast(column, pa.uint64(), safe=False) if pa.types.is_integer(column.type) else column
    found = pc.is_in(stored, value_set=pa.array(values, pa.uint64()))
    return np.asarray(found.to_numpy(zero_copy_only=False), bool)
