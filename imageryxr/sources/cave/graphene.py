"""Graphene segmentations: stored supervoxels, which a chunked graph agglomerates to roots at one instant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.bbox import IndexBox
from imageryxr.core.validate import to_whole
from imageryxr.errors import (
    Message,
    SegmentError,
    ServerError,
    SourceError,
    StaleRootError,
    format_value,
    param,
)
from imageryxr.sources.address import Address, parse_address
from imageryxr.sources.base import (
    LayerType,
    Level,
    MetadataFile,
    Missing,
    Source,
    Stale,
    clean_message,
    read_error,
    read_filled,
)
from imageryxr.sources.cave.chunkedgraph import ChunkedGraph, graph_at, parse_timestamp, pin_instant
from imageryxr.sources.cave.timestamp import Instant
from imageryxr.sources.fetch.auth import Token
from imageryxr.sources.fetch.connection import Connection, to_connection
from imageryxr.sources.fetch.engine import cpu_count
from imageryxr.sources.fetch.policy import access_for_named_address
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.url import MIDDLEAUTH, parse_web_url
from imageryxr.sources.precomputed.source import PrecomputedSource, open_precomputed

# Number of voxels that a thread relabels at a time.
RELABELLED = 1 << 20
# Members of a table's info that reading supervoxels requires. Others may be large and are not sent to workers.
_STORED = ("@type", "type", "data_type", "num_channels", "scales")


@dataclass(frozen=True)
class KeptRoot:
    """A root that is not current at the instant of its layer, and is drawn as it was at an instant of its own."""

    root: int
    """Id of the root."""
    instant: Instant
    """Instant at which the root was current."""
    among: tuple[int, ...]
    """Roots at the instant of the layer to which the supervoxels of this root may belong."""
    inside: bool
    """Whether `among` applies; if False, the supervoxels may belong to all roots except `among`."""

    def candidates(self, roots: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which supervoxels may belong to the root, from their roots at the instant of the layer."""
        return np.isin(roots, np.array(self.among, np.uint64), invert=not self.inside)


@dataclass(frozen=True)
class GrapheneSource:
    """A graphene layer pinned to an instant, including all metadata that reading requires."""

    graph: ChunkedGraph
    """Table that maps supervoxels to roots."""
    supervoxels: PrecomputedSource
    """Layer of the stored supervoxels."""
    instant: Instant | None
    """Instant of the roots; None for supervoxels."""
    root_layer: int | None
    """Layer number of root ids, stored in their first bits; None if unknown."""
    layer_bits: int = 8
    """Number of bits of the layer number."""
    kept: tuple[KeptRoot, ...] = ()
    """Roots of other instants, which are drawn over the current ones in this order."""

    @property
    def name(self) -> str:
        """Address of the table, without secrets."""
        return self.graph.name

    @property
    def layer_type(self) -> LayerType:
        """Kind of layer: always a segmentation."""
        return "segmentation"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type: uint64 for roots, the stored type for supervoxels."""
        return np.dtype(np.uint64) if self.instant is not None else self.supervoxels.dtype

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels of the supervoxels."""
        return self.supervoxels.levels

    @property
    def attrs(self) -> dict[str, Any]:
        """Instant, agglomeration and stale ids."""
        if self.instant is None:
            return {"agglomerate": False}
        stale = {"stale_ids": sorted(old.root for old in self.kept)} if self.kept else {}
        return {"agglomerate": True, "timestamp": self.instant.iso, **stale}

    def without_agglomeration(self) -> GrapheneSource:
        """Return the source of the supervoxels of the same table."""
        return replace(self, instant=None, kept=())

    def check(self, mip: int) -> None:
        """Raise `CodecError` if the encoding of a level cannot be decoded here."""
        self.supervoxels.check(mip)

    def read(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the roots (or supervoxels) in a box (z, y, x), 0 outside; makes at most one request for roots."""
        return read_filled(self, mip, box)

    def read_inside(self, mip: int, box: IndexBox) -> npt.NDArray[Any]:
        """Return the roots (or supervoxels) in a box that lies inside the layer."""
        from imageryxr.kernels import relabel

        if self.instant is None:
            return self.supervoxels.read_inside(mip, box)
        found: list[npt.NDArray[np.uint64]] = []
        stored = self.supervoxels.read_inside(mip, box, lambda part: found.append(relabel.distinct_ids(part)))
        labels = np.require(stored, np.uint64, ["C", "W"])
        # `found` is empty if all chunks are missing.
        ids = relabel.distinct_ids(np.concatenate(found)) if found else np.empty(0, np.uint64)
        if len(ids):
            try:
                roots = self._roots(ids, self.instant)
            except ServerError as error:
                raise read_error(self, mip, box, error) from error
            table = relabel.build_relabel_table(ids, roots)
            step = -(-len(labels) // max(1, labels.size // RELABELLED))
            parts = [labels[i : i + step] for i in range(0, len(labels), step)]
            run_in_parallel(lambda part, stop: relabel.relabel(part, table), parts, cpu_count())
        return labels

    def _roots(self, ids: npt.NDArray[np.uint64], instant: Instant) -> npt.NDArray[np.uint64]:
        shift = 64 - self.layer_bits
        found = self.graph.roots(ids, instant, self.root_layer, shift)
        roots = found.copy()
        for old in self.kept:
            at = np.flatnonzero(old.candidates(found))
            if len(at):
                then = self.graph.roots(ids[at], old.instant, self.root_layer, shift)
                roots[at[then == np.uint64(old.root)]] = old.root
        return roots

    def __dask_tokenize__(self) -> object:
        graph, instant = self.graph, self.instant
        place = (graph.server, graph.service, graph.table)
        stored = self.supervoxels.__dask_tokenize__()
        kept = [(old.root, old.instant.micros, old.among, old.inside) for old in self.kept]
        return ("imageryxr.graphene", place, stored, instant and instant.micros, self.root_layer, self.layer_bits, kept)


def open_graphene(
    address: Address,
    *,
    missing: Missing = None,
    agglomerate: bool = True,
    timestamp: Any = None,
    token: Token | str | None = None,
    connection: Connection | None = None,
) -> GrapheneSource:
    """Return the source of a table at an instant; requests its ``info`` and oldest timestamp, and reads no voxels.

    `missing`, `agglomerate` and `timestamp` are those of `imageryxr.open_segmentation`. The default of `token` is a
    stored one.

    Raises
    ------
    TimestampError
        If the timestamp is not valid, or the graph has no state at that time.
    AuthError, SourceNotFoundError, SourceError, ServerError
        If access is denied, there is no such table, its info is not valid, or a request fails.
    """
    connection = to_connection(connection)
    graph = graph_at(address, token=token, connection=connection)
    info, clock = graph.info()
    wanted = parse_timestamp(timestamp)  # raises for an invalid timestamp, also if it is not used
    instant = pin_instant(graph, wanted, clock) if agglomerate else None
    stored = _supervoxels(graph, info, missing)
    if instant is not None and stored.dtype != np.uint64:
        raise SourceError(f"the supervoxels of {graph.name} are {stored.dtype}; a graph requires uint64")
    layers, bits = _layer_numbers(graph, info["graph"])
    return GrapheneSource(graph, stored, instant, layers, bits)


def _layer_numbers(graph: ChunkedGraph, layout: Any) -> tuple[int | None, int]:
    """Return the layer number of roots, None if the ``info`` has none, and the number of bits of layer numbers."""
    layout = layout if isinstance(layout, dict) else {}
    layers, bits = layout.get("n_layers"), layout.get("n_bits_for_layer_id")
    bits = 8 if bits is None else bits
    for name, value, most in (("n_layers", layers, 255), ("n_bits_for_layer_id", bits, 32)):
        number = to_whole(value)
        if value is not None and (number is None or not 1 <= number <= most):
            raise SourceError(
                f"the info of {graph.name} has {name} {format_value(value)}; it must be a whole number from 1 to {most}"
            )
    return layers, bits


def _supervoxels(graph: ChunkedGraph, info: dict[str, Any], missing: Missing) -> PrecomputedSource:
    place = parse_address(str(info["data_dir"]))
    access = access_for_named_address(
        place, graph.server, graph.connection.access, f"the info of the table {graph.table!r}"
    )
    token, connection = graph.token, replace(graph.connection, access=access)
    if token and place.url.startswith(MIDDLEAUTH) and token.header_for(graph.server, access) is not None:
        # The graph server receives the token and could pass it on, so the storage server that it names may receive it.
        token = token.with_hosts(parse_web_url(place.url).netloc)
    stored = {key: info[key] for key in _STORED if key in info}
    found = open_precomputed(
        place, missing=missing, info=MetadataFile(stored), token=token, connection=connection, channel=0
    )
    name = f"{graph.name} (supervoxels at {found.name})"
    return replace(found, name=name, layer_type="segmentation")


def resolve_root_ids(source: GrapheneSource, ids: Iterable[Any], stale: Stale) -> tuple[GrapheneSource, list[int]]:
    """Return a layer and the root ids to select from it; request from the graph which ids are current at its instant.

    Roots that were current at another time raise `StaleRootError`; with ``stale="update"`` the current roots that cover
    the same object are used, and with ``"keep"`` the old roots are drawn. Where requested roots overlap, current ones
    are drawn on top of old ones, and old ones in the order of their distance in time. An id that is not a root, or is a
    root although the layer has supervoxels, raises `SegmentError`.
    """
    requested = np.array(list(ids), dtype=np.uint64)
    _check_id_layers(source, requested)
    if source.instant is None or not len(requested):
        return source, [int(i) for i in requested]
    current = source.graph.are_current(requested, source.instant)
    others = [int(i) for i in requested[~current]]
    born = source.graph.creation_times(others) if others else {}
    unknown = [root for root in others if root not in born]
    if unknown:
        raise SegmentError(
            f"{_format_ids(unknown)} {'is no root' if len(unknown) == 1 else 'are no roots'} of {source.name} at any "
            "time; check the ids: floats and spreadsheets round numbers of more than 15 digits"
        )
    if not others:
        return source, [int(i) for i in requested]
    successors = source.graph.current_relatives(born, source.instant)
    kept = [int(i) for i in requested[current]]
    if stale == "keep":
        old = _kept_roots(source.graph, born, successors, kept, source.instant)
        return replace(source, kept=old), [int(i) for i in requested]
    if stale == "raise" or not all(successors.values()):
        raise _stale_error(source, successors)
    return source, sorted({*kept, *(new for found in successors.values() for new in found)})


def _kept_roots(
    graph: ChunkedGraph,
    born: dict[int, Instant],
    successors: dict[int, list[int]],
    current: list[int],
    instant: Instant,
) -> tuple[KeptRoot, ...]:
    # Roots of the initial graph have creation times before its first state, at which no state can be requested.
    oldest = graph.oldest()
    times = {root: max(made, oldest or made) for root, made in born.items()}
    far_first = sorted(times, key=lambda root: (-abs(times[root].micros - instant.micros), root))
    return tuple(
        KeptRoot(root, times[root], tuple(sorted({*successors[root]} - {*current})), True)
        if successors[root]
        else KeptRoot(root, times[root], tuple(sorted(current)), False)
        for root in far_first
    )


def _check_id_layers(source: GrapheneSource, ids: npt.NDArray[np.uint64]) -> None:
    if source.root_layer is None:
        return
    layers = ids >> np.uint64(64 - source.layer_bits)
    if source.instant is None:
        _check_no_roots(source, ids[layers > 1], ids[layers <= 1])
        return
    wrong = ids[layers != np.uint64(source.root_layer)]
    if len(wrong):
        raise SegmentError(
            f"{int(wrong[0])} is {_node_kind(source, wrong[0])} of {source.name}; give root ids ",
            f"(layer {source.root_layer}), or ",
            param("agglomerate", False),
            " to open supervoxels",
        )


def _check_no_roots(source: GrapheneSource, roots: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> None:
    if len(roots):
        advice = (
            "give supervoxels only"
            if len(others)
            else Message("leave ", param("agglomerate", False), " out to open roots")
        )
        raise SegmentError(
            f"{int(roots[0])} is {_node_kind(source, roots[0])} of {source.graph.name}, but ",
            param("agglomerate", False),
            " opens supervoxels (layer 1); ",
            advice,
        )


def _node_kind(source: GrapheneSource, number: np.uint64) -> str:
    layer = int(number >> np.uint64(64 - source.layer_bits))
    named = {0: "not an id", 1: "a supervoxel and not a root", source.root_layer: "a root"}
    return named.get(layer, f"a node of layer {layer} and not a root")


def _stale_error(source: GrapheneSource, successors: dict[int, list[int]]) -> StaleRootError:
    listed = "; ".join(
        f"{root} is {_format_ids(new)} at that instant" if new else f"the graph lists no successor of {root}"
        for root, new in list(successors.items())[:5]
    )
    more = f"; and {len(successors) - 5} more" if len(successors) > 5 else ""
    return StaleRootError(
        f"not current in {clean_message(source.name)} at {source.instant}: {listed}{more}; give the ids of that "
        "instant, another timestamp, stale='update' to take the successors, or stale='keep' to draw the old root",
        successors,
    )


def _format_ids(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


_: type[Source] = GrapheneSource
