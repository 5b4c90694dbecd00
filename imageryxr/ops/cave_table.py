"""Open CAVE tables and views as Datasets of annotations, at the instant of a tree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import make_annotations, points_in_box
from imageryxr.core.bbox import BBox
from imageryxr.core.colors.ids import list_unique_ids
from imageryxr.core.validate import check_text, check_whole
from imageryxr.errors import LayerError, OptionError, param, warn
from imageryxr.graph.expr import LevelLeaf
from imageryxr.graph.labelled import volume_of
from imageryxr.sources.cave.datastack import find_datastack
from imageryxr.sources.cave.graphene import GrapheneSource, resolve_root_ids
from imageryxr.sources.cave.materialization import Materialization
from imageryxr.sources.cave.table_rows import Column, TableReader, open_table
from imageryxr.sources.cave.timestamp import instant_of
from imageryxr.sources.fetch.connection import Connection, to_connection

if TYPE_CHECKING:
    import pyarrow as pa


def table(
    tree: xr.DataTree,
    name: str,
    *,
    bbox: BBox | None = None,
    ids: Iterable[int] | None = None,
    position: str | None = None,
    limit: int | None = None,
    token: str | None = None,
    connection: Connection | None = None,
) -> xr.Dataset:
    """Open a table or view of a CAVE datastack as annotations, at the version or timestamp of a tree.

    Reads the rows; the Dataset is in memory. The rows of a reference table are merged with the rows that they refer to.
    Many rows are requested in several pages, with a progress bar on a terminal.

    Parameters
    ----------
    tree : DataTree
        Tree from `open_datastack`.
    name : str
        Name of the table or view, such as ``"synapses_pni_2"``.
    bbox : BBox, optional
        Return only rows whose position lies in ``[lo, hi)``. The server selects them.
    ids : iterable of int, optional
        Root ids of segments: return only rows in which a column of root ids, such as ``pre_pt_root_id`` or
        ``post_pt_root_id``, has one of these values.
    position : str, optional
        The position column, such as ``"ctr_pt_position"`` or ``"ctr_pt"``. Required if there are several.
    limit : int, optional
        Largest number of rows. The server chooses which.
    token, connection : optional
        As in `open_datastack`. Default: those of the tree's segmentation.

    Returns
    -------
    Dataset
        As in `as_annotations`: points with positions in nm, the coordinate ``id``, and every column of the table as a
        variable. Other position columns have dims (annotation, axis) and are in nm. If a reference table and the table
        that it refers to have columns of the same name, the former end in ``_ref``. Attrs ``source``, ``datastack``,
        ``table``, ``version`` and ``timestamp``. If the timestamp lies between two versions, ``version`` is the one
        before it.

    Raises
    ------
    SourceNotFoundError
        If there is no such table, or the version of the tree has expired.
    TimestampError
        If the server has no tables at the instant of the tree.
    SourceError
        If the table has no position column, or no root ids although ``ids`` is given.
    OptionError
        If the table has several position columns and ``position`` is not one of them.
    SegmentError, StaleRootError
        If an id is not a root, or is not current at the instant of the tree.
    AuthError, ServerError
        If access is denied, the request fails, or the response is not valid.

    Warns
    -----
    ImageryWarning
        If rows without a position are omitted.

    Examples
    --------
    >>> import imageryxr as ix
    >>> tree = ix.open_datastack("minnie65_public", version=1300)  # doctest: +SKIP
    >>> box = tree.imagery.around((240640, 207872, 21360), (2048, 2048, 10))  # doctest: +SKIP
    >>> synapses = tree.imagery.table("synapses_pni_2", bbox=box, position="ctr_pt")  # doctest: +SKIP
    """
    tree = tree.root
    if "datastack" not in tree.attrs:
        raise LayerError(
            "the tree has no CAVE datastack, so it has no tables; open one with imageryxr.open_datastack(name)"
        )
    if bbox is not None and not isinstance(bbox, BBox):
        raise OptionError(
            param("bbox", bbox), " is not a BBox; write tree.imagery.around((x, y, z), (width, height, depth))"
        )
    limit = None if limit is None else check_whole("limit", limit, 1, unit="rows")
    name = check_text("name", name, "the name of a table or view")
    position = None if position is None else check_text("position", position, "the name of a position column")
    graph = _graph_source(tree)
    if graph is not None:
        token = graph.graph.token if token is None else token  # type: ignore[assignment]
        connection = graph.graph.connection if connection is None else connection
    connection = to_connection(connection)
    stack = find_datastack(
        tree.attrs["datastack"], server_address=tree.attrs.get("server_address"), token=token, connection=connection
    )
    roots = None if ids is None else list_unique_ids(ids)
    if roots and graph is not None and graph.instant is not None:
        roots = resolve_root_ids(graph, roots, "raise")[1]
    service = Materialization(stack, connection)
    time, version = tree.attrs.get("timestamp"), tree.attrs.get("version")
    snapshot = service.find_snapshot(
        None if version is None else int(version), None if time is None else instant_of(time, naive_is_utc=True)
    )
    reader = open_table(service, snapshot, name)
    where = reader.position(position)

    def is_inside(page: pa.Table) -> npt.NDArray[np.bool_]:
        places = _positions(page, where)
        return np.ones(len(places), bool) if bbox is None else points_in_box(places, bbox)

    rows = reader.read(where, bbox, roots, limit, is_inside)
    return _make_dataset(reader, where, rows)


def _graph_source(tree: xr.DataTree) -> GrapheneSource | None:
    """Return the graphene source of a tree's segmentation, or None if the segmentation is static."""
    try:
        expr = volume_of(tree["segmentation"]["segmentation"])  # type: ignore[arg-type]
    except (KeyError, LayerError):
        return None
    leaves = expr.expr.leaf_cores(expr.grid.box)
    sources = [leaf.source for leaf in leaves if isinstance(leaf, LevelLeaf)]
    return next((s for s in sources if isinstance(s, GrapheneSource)), None)


def _positions(rows: pa.Table, column: Column) -> npt.NDArray[np.float64]:
    """Return positions (x, y, z) in nm, NaN where they are missing."""
    stored = [rows.column(f"{column.label}_{axis}").to_pandas().to_numpy(np.float64) for axis in "xyz"]
    places: npt.NDArray[np.float64] = np.stack(stored, axis=1) * np.array(column.resolution)
    return places


def _make_dataset(reader: TableReader, where: Column, rows: pa.Table) -> xr.Dataset:
    import pandas as pd
    import pyarrow as pa

    places = _positions(rows, where)
    has_place = np.isfinite(places).all(axis=1)
    if not has_place.all():
        warn(
            f"{np.count_nonzero(~has_place):,} of {len(places):,} rows of {reader.info.name!r} have no "
            f"{where.label} and are omitted"
        )
        rows, places = rows.filter(pa.array(has_place)), places[has_place]
    parts = {f"{p.label}_{axis}" for p in reader.positions for axis in "xyz"}
    columns: dict[str, Any] = {
        name: rows.column(name).to_pandas(types_mapper=pd.ArrowDtype) for name in rows.column_names if name not in parts
    }
    ids = columns.pop("id", None)
    # The server returns all positions of joined tables in units of the selected position column.
    others = {p.label: _positions(rows, Column(p.label, p.table, p.name, where.resolution)) for p in reader.positions}
    del others[where.label]
    snapshot, stack = reader.snapshot, reader.service.stack
    attrs = {
        "source": reader.service.address(reader.info, snapshot),
        "datastack": stack.name,
        "table": reader.info.name,
        "version": snapshot.version,
        "timestamp": snapshot.instant.iso,
    }
    found = make_annotations("point", places, ids=ids, properties={**columns, **others}, attrs=attrs)
    for label in others:
        found[label].attrs["units"] = "nm"
    return found
