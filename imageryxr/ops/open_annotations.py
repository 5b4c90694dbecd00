"""Open precomputed annotations as Datasets."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import CATEGORIES, DIM, annotations_in_box, make_annotations
from imageryxr.core.bbox import BBox
from imageryxr.core.colors.ids import list_ids, list_unique_ids
from imageryxr.errors import MissingIdsWarning, OptionError, SourceError, param, warn
from imageryxr.sources.annotations.folder import open_folder
from imageryxr.sources.annotations.info import GEOMETRY, AnnotationInfo, Property, parse_info
from imageryxr.sources.annotations.source import AnnotationSource, Ids, Records, join_records
from imageryxr.sources.fetch.connection import Connection

# Pairs of an annotation, as its position in a Dataset, and a related segment, for one relationship.
Pairs = tuple[npt.NDArray[np.intp], Ids]


def open_annotations(
    source: str | os.PathLike[str],
    *,
    bbox: BBox | None = None,
    segments: Iterable[int | str] | int | str | None = None,
    ids: Iterable[int | str] | int | str | None = None,
    token: str | None = None,
    connection: Connection | None = None,
) -> xr.Dataset:
    """Open annotations in Neuroglancer's precomputed format: points, lines, boxes or ellipsoids.

    Reads the annotations; the Dataset is in memory. Only the needed parts of the layer are read: the cells of the
    spatial index that meet ``bbox``, or the entries of ``ids`` or ``segments``, several at a time.

    Parameters
    ----------
    source : str or path
        ``precomputed://…`` with a URL or a local path, of a folder whose ``info`` is of type
        ``neuroglancer_annotations_v1``.
    bbox : BBox, optional
        Return only points in ``[lo, hi)``, and lines, boxes and ellipsoids that overlap the box. Without any selection,
        all annotations are read.
    segments : iterable of int, optional
        Return only annotations that are related to one of these segments, by any relationship of the layer. Ids are
        integers or their digits; a single one can be given without a list.
    ids : iterable of int, optional
        Return only the annotations of these ids, in this order.
    token : str, optional
        Token for ``middleauth`` servers. Default: as in `open_image`.
    connection : Connection, optional
        Timeouts, retries and concurrent requests.

    Returns
    -------
    Dataset
        As in `as_annotations`: dim ``annotation``; positions in nm (float64); the coordinate ``id`` (uint64); attrs
        ``annotation_type`` and ``source``. Each annotation occurs once. Every property is a variable: numbers with the
        stored dtype, enums as their labels, colours as ``"#rrggbb"`` or ``"#rrggbbaa"``. If ``ids`` or ``segments`` are
        given, every relationship is a variable of segments (uint64, 0 if there is none): with ``ids`` of all related
        segments, with ``segments`` of those given. It has a second dim if an annotation has several.

    Raises
    ------
    SourceNotFoundError, SourceError, NoVolumeError
        If there is nothing at the address, or no annotations, or an index that the selection needs does not exist.
    AuthError
        If access is denied.
    ChunkReadError
        If a file cannot be read or is damaged.
    OptionError
        If the selection needs more than a million cells.

    Warns
    -----
    MissingIdsWarning
        If some of ``ids`` do not exist, or some of ``segments`` have no annotations.
    ImageryWarning
        If annotations whose stored positions are not finite numbers are omitted.

    Notes
    -----
    The format is described in
    https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/annotations.md. It stores positions as
    float32, so that those beyond 2^24 units are whole numbers.

    Examples
    --------
    >>> import imageryxr as ix
    >>> box = ix.BBox((4000, 2000, 100), (4200, 2200, 110), resolution=(8, 8, 40))
    >>> synapses = ix.open_annotations("precomputed://gs://bucket/synapses", bbox=box)  # doctest: +SKIP
    >>> ix.open_annotations("precomputed://gs://bucket/synapses", segments=[864691135617152361])  # doctest: +SKIP
    """
    if bbox is not None and not isinstance(bbox, BBox):
        raise OptionError(
            param("bbox", bbox),
            " is not a BBox; write ix.BBox((x, y, z), (x, y, z), ",
            param("resolution", text="(x, y, z)"),
            ")",
        )
    folder, info = open_folder(source, token, connection)
    layer = AnnotationSource(folder, parse_info(info, folder.name))
    return read_annotations(layer, bbox, segments, ids)


def read_annotations(
    layer: AnnotationSource,
    bbox: BBox | None,
    segments: Iterable[int | str] | int | str | None,
    ids: Iterable[int | str] | int | str | None,
) -> xr.Dataset:
    """Return the selected annotations of a layer; see `open_annotations`."""
    requested = None if segments is None else list_unique_ids(segments, "segments")
    if requested is not None and not layer.info.relationships:
        raise SourceError(f"{layer.folder.name} has no relationship to segments; select with ", "bbox=", " or ", "ids=")
    related: list[Pairs] | None = None
    if ids is not None:
        records, related = _read_ids(layer, list(dict.fromkeys(list_ids(ids))))  # 0 is a valid id of an annotation
        if requested is not None:
            chosen = np.zeros(len(records.ids), bool)
            for rows, numbers in related:
                chosen[rows[np.isin(numbers, np.array(requested, np.uint64))]] = True
            records, related = records.select(chosen), [_select_pairs(pairs, chosen) for pairs in related]
    elif requested is not None:
        records, related = _read_segments(layer, requested)
    else:
        records = layer.read_box(bbox)
    found = make_dataset(layer.info, records, layer.folder.name, related)
    return found if bbox is None else found.isel({DIM: np.flatnonzero(annotations_in_box(found, bbox))})


def _read_ids(layer: AnnotationSource, ids: list[int]) -> tuple[Records, list[Pairs]]:
    records, columns = layer.read_ids(ids)
    found = set(records.ids.tolist())
    warn_missing_ids(f"{layer.folder.name} has no annotation with the id", ids, found)
    pairs = []
    for column in columns:
        rows = np.repeat(np.arange(len(column)), [len(numbers) for numbers in column])
        pairs.append((rows, np.concatenate([np.empty(0, np.uint64), *column])))
    return records, pairs


def _read_segments(layer: AnnotationSource, segments: list[int]) -> tuple[Records, list[Pairs]]:
    by_relationship = [layer.read_segments(number, segments) for number in range(len(layer.info.relationships))]
    parts = [records for found in by_relationship for records in found.values()]
    related = {segment for found in by_relationship for segment, part in found.items() if len(part.ids)}
    warn_missing_ids(f"{layer.folder.name} has no annotation that is related to the segment", segments, related)
    records = join_records(layer.info, parts).unique()
    pairs = []
    for found in by_relationship:
        numbers = [np.full(len(part.ids), segment, np.uint64) for segment, part in found.items()]
        ids = np.concatenate([np.empty(0, np.uint64), *(part.ids for part in found.values())])
        pairs.append((np.searchsorted(records.ids, ids), np.concatenate([np.empty(0, np.uint64), *numbers])))
    return records, pairs


def warn_missing_ids(problem: str, ids: list[int], found: Container[int]) -> None:
    """Warn about ids that were not found; `problem` is the message up to the list of these ids."""
    absent = [number for number in ids if number not in found]
    if absent:
        shown = ", ".join(map(str, absent[:5])) + (f" and {len(absent) - 5:,} more" if len(absent) > 5 else "")
        warn(f"{problem} {shown}", MissingIdsWarning)


def _select_pairs(pairs: Pairs, chosen: npt.NDArray[np.bool_]) -> Pairs:
    rows, numbers = pairs
    kept = chosen[rows]
    return np.cumsum(chosen)[rows[kept]] - 1, numbers[kept]


def make_dataset(info: AnnotationInfo, records: Records, name: str, related: list[Pairs] | None = None) -> xr.Dataset:
    """Return decoded annotations as a Dataset.

    ``name`` is the address of the layer without secrets. ``related`` has, for each relationship, the rows of
    annotations and the related segments, pair by pair.
    """
    is_finite = np.isfinite(records.values[GEOMETRY]).all(axis=1)
    if not is_finite.all():
        warn(
            f"{np.count_nonzero(~is_finite):,} of {len(is_finite):,} annotations of {name} have positions that are not "
            f"finite numbers and are omitted, the first with the id {records.ids[~is_finite][0]}"
        )
        records = records.select(is_finite)
        related = None if related is None else [_select_pairs(pairs, is_finite) for pairs in related]
    stored = records.values[GEOMETRY].astype(np.float64).reshape(
        len(records.ids), 1 if info.type == "point" else 2, 3
    ) * np.array(info.units)
    places = stored[:, :, list(info.axes)]
    second = places[:, 1] if info.type != "point" else None
    properties: dict[str, Any] = {}
    for prop in info.properties:
        attrs = {"description": prop.description} if prop.description else {}
        if prop.labels:
            attrs[CATEGORIES] = json.dumps(list(dict.fromkeys(label for _, label in prop.labels)))
        properties[prop.name] = xr.Variable((DIM,), _property_values(prop, records.values[prop.name]), attrs)
    wide: dict[str, npt.NDArray[np.uint64]] = {}
    for relationship, pairs in zip(info.relationships, related or [], strict=False):
        segments = _segment_table(pairs, len(records.ids))
        if segments.shape[1] > 1:
            wide[relationship.name] = segments
        else:
            properties[relationship.name] = segments[:, 0]
    is_ellipsoid = info.type == "ellipsoid"
    found = make_annotations(
        info.type,
        places[:, 0],
        ends=None if is_ellipsoid else second,
        radii=second if is_ellipsoid else None,
        ids=records.ids,
        properties=properties,
        attrs={"source": name},
    )
    return assign_tables(found, wide)


def assign_tables(annotations: xr.Dataset, tables: Mapping[str, npt.NDArray[np.uint64]]) -> xr.Dataset:
    """Return annotations with tables of several segments for each annotation; a name that is taken ends in _column."""
    found: dict[str, Any] = {}
    for key, segments in tables.items():
        name = key
        while name in annotations.variables or name in found:
            name += "_column"
        found[name] = ((DIM, f"{name}_segment"), segments)
    return annotations.assign(found)


def _property_values(prop: Property, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values of a property: colours as text, enums as their labels, numbers unchanged."""
    if stored.ndim == 2:
        digits, width = stored.tobytes().hex(), 2 * stored.shape[1]
        return np.array([f"#{digits[i : i + width]}" for i in range(0, len(digits), width)], dtype=object)
    if not prop.labels:
        return stored.astype(stored.dtype.newbyteorder("="))
    values, inverse = np.unique(stored, return_inverse=True)
    labels = {float(np.array(value).astype(stored.dtype)): label for value, label in prop.labels}
    texts = [labels.get(float(value), str(value)) for value in values]
    return np.array(texts, dtype=object)[inverse] if texts else np.empty(0, dtype=object)


def _segment_table(pairs: Pairs, count: int) -> npt.NDArray[np.uint64]:
    """Return the segments of each annotation in its row of a table, padded with 0; it has at least one column."""
    rows, numbers = pairs
    order = np.argsort(rows, kind="stable")
    rows, numbers = rows[order], numbers[order]
    first = np.searchsorted(rows, np.arange(count))
    column = np.arange(len(rows)) - first[rows]
    table = np.zeros((count, 1 + int(column.max(initial=0))), np.uint64)
    table[rows, column] = numbers
    return table
