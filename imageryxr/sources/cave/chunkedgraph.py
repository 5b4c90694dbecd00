"""A table of a PyChunkedGraph server: what joins supervoxels to roots, as it was at an instant.

The protocol: https://github.com/CAVEconnectome/PyChunkedGraph. Neither client will do: cloud-volume rounds instants up
to whole seconds, caveclient asks without timeouts, and both pass zeros and supervoxels off as roots.
"""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.errors import ClockWarning, ServerError, SourceError, SourceNotFoundError, TimestampError
from imageryxr.sources.address import Address
from imageryxr.sources.cave.timestamp import Instant, instant_of
from imageryxr.sources.fetch.auth import Token, check_allowed, find_token
from imageryxr.sources.fetch.client import Connection, Reply, server_message
from imageryxr.sources.fetch.json_service import json_problem, request_service
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.url import parse_web_url
from imageryxr.sources.json_members import parse_json

Ids = npt.NDArray[np.uint64]

# Ids in one request: cloud-volume sends as many.
BATCH = 250_000
# Supervoxels whose roots a process remembers, for each table and instant, and for how many of these.
REMEMBERED, STATES = 2_000_000, 8
# Clocks that differ by no more than this are taken to agree.
CLOCK_SECONDS = 2.0

_PATHS = re.compile(r"(https?://[^/]+)/(\w+)/(?:api/v\d+/table|api/v\d+|table|\d+\.\d+)/([\w.\-]+)/?$")


@dataclass(frozen=True)
class ChunkedGraph:
    """A table on a server: a value that holds no connection."""

    server: str
    """``https://host``."""
    service: str
    """First word of its paths: ``segmentation``."""
    table: str
    """Its name."""
    token: Token | None = field(default=None, compare=False)
    """What the server is asked with."""
    connection: Connection = field(default=Connection(), compare=False, repr=False)
    """How it is asked."""

    @property
    def name(self) -> str:
        """Its address, without anything secret."""
        return f"graphene://{self.server}/{self.service}/table/{self.table}"

    def info(self) -> tuple[dict[str, Any], Instant | None]:
        """Return the table's ``info``, and what the server's clock says.

        Raises
        ------
        SourceNotFoundError
            If there is no such table.
        SourceError
            If what came is no ``info``.
        AuthError, ServerError
            If it may not be read, or did not come.
        """
        url = f"{self.server}/{self.service}/table/{self.table}/info"
        try:
            reply = request_service("GET", url, self.connection, self.token)
        except ServerError as error:
            # PyChunkedGraph answers 500 for a table that is not there, as it does for a fault of its own.
            if "HTTP 500" in str(error) and self._is_up():
                raise self._missing_table_error(
                    "HTTP 500, while the server works: its answer to unknown names"
                ) from error
            raise
        check_allowed(reply, self.name, self.server, self.token, self.connection.access)
        if reply.status == 404:
            raise self._missing_table_error("HTTP 404")
        if reply.status != 200:
            raise ServerError(f"{self.name}: its info answered HTTP {reply.status}")
        found = self._json_object(reply)
        absent = [key for key in ("graph", "data_dir", "scales", "data_type") if key not in found]
        if absent:
            raise SourceError(f"the info of {self.name} is not that of a graphene segmentation: it lacks {absent[0]!r}")
        return found, _clock(reply)

    def oldest(self) -> Instant | None:
        """Return the first instant at which the graph has a state; None if the server does not tell."""
        reply = self._request("GET", "oldest_timestamp", missing_ok=True)
        if reply.status == 404:
            return None
        told = self._json_object(reply).get("iso")
        try:
            return instant_of(str(told), naive_is_utc=True)
        except TimestampError:
            raise ServerError(f"{self.name}: its oldest timestamp makes no sense: {str(told)[:80]!r}") from None

    def roots(self, supervoxels: Ids, instant: Instant, layers: int | None, shift: int) -> Ids:
        """Return the root of each supervoxel at an instant, from what this process knows or in one request.

        Parameters
        ----------
        supervoxels : uint64[k]
            Ascending, distinct, without 0.
        instant : Instant
            When.
        layers, shift : int
            The layer of roots, and how many bits lie behind an id's layer.

        Raises
        ------
        ServerError
            If no sensible roots came for all of them.
        """
        memory = _memory_of((self.server, self.service, self.table), instant)
        known, roots = memory.look_up(supervoxels)
        asked = supervoxels[~known]
        if asked.size:
            found = np.concatenate([self._request_roots(part, instant) for part in _batches(asked)])
            self._check_roots(asked, found, instant, layers, shift)
            memory.remember(asked, found)
            roots[~known] = found
        return roots

    def are_current(self, ids: Ids, instant: Instant) -> npt.NDArray[np.bool_]:
        """Tell which ids are roots at an instant."""
        check = _list_check("is_latest", len(ids))
        reply = self._request("POST", f"is_latest_roots?timestamp={instant.seconds}", {"node_ids": ids.tolist()}, check)
        return np.array(self._json_object(reply)["is_latest"], dtype=bool)

    def creation_times(self, roots: Sequence[int]) -> dict[int, Instant]:
        """Return when each root came to be, without those that are none."""
        found = self._times(roots)
        # Ids that are no roots are left out of the answer, which does not tell which.
        if len(found) != len(roots):
            each = run_in_parallel(lambda root, stop: self._times([root]), roots, self.connection.concurrency)
            return {root: times[0] for root, times in zip(roots, each, strict=True) if times}
        return dict(zip(roots, found, strict=True))

    def current_relatives(self, made: dict[int, Instant], instant: Instant) -> dict[int, list[int]]:
        """Return the roots that each root became, or that it was made of, and that are current at an instant.

        Parameters
        ----------
        made : dict
            Roots, and when they came to be.
        instant : Instant
            When.
        """
        lines = run_in_parallel(
            lambda item, stop: self._lineage(*item, instant), list(made.items()), self.connection.concurrency
        )
        everyone = np.array(sorted(set().union(*lines)), np.uint64)
        current = set(everyone[self.are_current(everyone, instant)].tolist()) if len(everyone) else set()
        return {root: sorted(line & current) for root, line in zip(made, lines, strict=True)}

    def _times(self, roots: Sequence[int]) -> list[Instant]:
        check = _list_check("timestamp", None)
        value = {"node_ids": list(roots)}
        reply = self._request("POST", "root_timestamps?latest=False", value, check, missing_ok=len(roots) == 1)
        if reply.status != 200:
            return []
        return [instant_of(time) for time in self._json_object(reply)["timestamp"]]

    def _lineage(self, root: int, made: Instant, instant: Instant) -> set[int]:
        # Forebears that were current at the instant were made before it: all of the past is asked for then.
        since = f"&timestamp_past={made.seconds}" if made <= instant else ""
        path = f"lineage_graph_multiple?timestamp_future={max(made, instant).seconds}{since}"
        reply = self._request("POST", path, {"root_ids": [root]}, _list_check("nodes", None), missing_ok=True)
        if reply.status != 200:
            return set()
        ids = [node.get("id") if isinstance(node, dict) else None for node in self._json_object(reply)["nodes"]]
        ids = [int(i) if isinstance(i, str) and re.fullmatch("[0-9]{1,20}", i) else i for i in ids]
        numbers = {i for i in ids if isinstance(i, int) and 0 <= i < 2**64}
        if len(numbers) < len(set(map(str, ids))):
            raise ServerError(f"{self.name} answered with a lineage of root {root} whose nodes have no ids")
        return numbers - {root}

    # -----------------------------------------------------------------------------------------------------

    def _request(
        self,
        method: str,
        path: str,
        value: object = None,
        check: Callable[[Reply], str] = json_problem,
        *,
        missing_ok: bool = False,
    ) -> Reply:
        url = f"{self.server}/{self.service}/api/v1/table/{self.table}/{path}"
        body = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        reply = request_service(method, url, self.connection, self.token, body=body, kind=kind, check=check)
        check_allowed(reply, self.name, self.server, self.token, self.connection.access)
        if reply.status != 200 and not (missing_ok and reply.status in (400, 404)):
            words = self.token.hide(server_message(reply)) if self.token else server_message(reply)
            raise ServerError(f"{self.name}: {path.partition('?')[0]} answered HTTP {reply.status} {words}".rstrip())
        return reply

    def _request_roots(self, supervoxels: Ids, instant: Instant) -> Ids:
        def check(reply: Reply) -> str:
            got, want = len(reply.body), 8 * len(supervoxels)
            return "" if got == want else f"{got} bytes of roots came for {len(supervoxels)} supervoxels, not {want}"

        body = supervoxels.astype("<u8").tobytes()
        reply = self._request("POST", f"roots_binary?timestamp={instant.seconds}", body, check)
        return np.frombuffer(reply.body, "<u8").astype(np.uint64)

    def _check_roots(self, asked: Ids, found: Ids, instant: Instant, layers: int | None, shift: int) -> None:
        bad = found == 0
        if layers is not None:
            bad |= (found >> np.uint64(shift)) != np.uint64(layers)
        else:
            bad |= found == asked
        if bad.any():
            first = int(np.argmax(bad))
            raise ServerError(
                f"{self.name} has no root at {instant} for {int(bad.sum())} of {len(asked)} supervoxels: for "
                f"{int(asked[first])} it answered {int(found[first])}, which is no root id; either the supervoxels are "
                "not those of this table, or the instant lies before the graph's first"
            )

    def _json_object(self, reply: Reply) -> dict[str, Any]:
        found = parse_json(reply.body) if not json_problem(reply) else None
        if not isinstance(found, dict):
            raise ServerError(f"{self.name} answered with something that is no JSON object")
        return found

    def _is_up(self) -> bool:
        try:
            url = f"{self.server}/{self.service}/api/version"
            return request_service("GET", url, self.connection, self.token, check=lambda reply: "").status == 200
        except ServerError:
            return False

    def _missing_table_error(self, why: str) -> SourceNotFoundError:
        return SourceNotFoundError(
            f"there is no table {self.table!r} on {self.server}, or it fails there ({why}); check the name: "
            "imageryxr.open_datastack finds the right one by the name of the datastack"
        )


def graph_at(address: Address, *, token: Token | str | None, connection: Connection) -> ChunkedGraph:
    """Return the table at an address; asks nothing.

    Raises
    ------
    SourceError
        If the address is none of those that graphene tables have.
    """
    found = _PATHS.match(address.url.removeprefix("middleauth+"))
    if found is None:
        raise SourceError(
            f"graphene://{address.public} names no table of a graph server; write "
            "graphene://https://HOST/segmentation/table/TABLE"
        )
    server, service, table = found.groups()
    place = parse_web_url(server)
    held = find_token(place.netloc, given=token)
    return ChunkedGraph(f"{place.scheme}://{place.netloc}", service, table, held, connection)


def pin_instant(graph: ChunkedGraph, timestamp: Any, clock: Instant | None) -> Instant:
    """Return the one instant of a layer: the one asked for, or now.

    Parameters
    ----------
    graph : ChunkedGraph
        Is asked when it begins.
    timestamp : datetime, str, float, Instant or None
        As given; None and "now" mean now.
    clock : Instant, optional
        What the server's clock says.

    Raises
    ------
    TimestampError
        If it lies before the graph's first state, or in the future, where the state may still change.
    """
    now = _reconcile_clocks(graph, Instant.now(), clock)
    instant = parse_timestamp(timestamp)
    if instant is None:
        return now
    if instant > now.after(CLOCK_SECONDS):
        raise TimestampError(
            f"timestamp={instant} lies in the future (now it is {now}): the graph may still change until then; leave "
            "timestamp out for now"
        )
    oldest = graph.oldest()
    if oldest is not None and instant < oldest:
        raise TimestampError(
            f"timestamp={instant} lies before the first state of {graph.name}, {oldest}: there were no roots yet; give "
            "a later one, or agglomerate=False for supervoxels"
        )
    return instant


def parse_timestamp(timestamp: Any) -> Instant | None:
    """Return the instant that somebody gave; None for None and "now".

    Raises
    ------
    TimestampError
        If it is no time.
    """
    if timestamp is None or (isinstance(timestamp, str) and timestamp.strip().lower() == "now"):
        return None
    return timestamp if isinstance(timestamp, Instant) else instant_of(timestamp)


def _reconcile_clocks(graph: ChunkedGraph, here: Instant, clock: Instant | None) -> Instant:
    # A pin in the server's future would not hold: edits would still land before it. Its clock tells whole seconds.
    if clock is None:
        return here
    apart = (here.micros - clock.micros) / 1e6
    if -CLOCK_SECONDS <= apart <= 1 + CLOCK_SECONDS:
        return min(here, clock.after(1))
    warnings.warn(
        f"this machine's clock is {'ahead of' if apart > 0 else 'behind'} that of {graph.server} by {abs(apart):.0f} "
        f"s; the server's time, {clock}, is taken for now",
        ClockWarning,
        stacklevel=2,
    )
    return clock


def _clock(reply: Reply) -> Instant | None:
    from email.utils import parsedate_to_datetime

    try:
        return instant_of(parsedate_to_datetime(reply.headers["date"]), naive_is_utc=True)
    except (KeyError, ValueError, TypeError):
        return None


def _list_check(key: str, count: int | None) -> Callable[[Reply], str]:
    def check(reply: Reply) -> str:
        try:
            found = parse_json(reply.body)[key]
        except (ValueError, KeyError, TypeError):
            return f"the answer is not JSON with {key!r}"
        if not isinstance(found, list) or (count is not None and len(found) != count):
            return f"{key!r} is not a list" + (f" of {count}" if count is not None else "")
        return ""

    return check


def _batches(ids: Ids) -> Iterable[Ids]:
    return (ids[i : i + BATCH] for i in range(0, len(ids), BATCH))


# ---------------------------------------------------------------------------------------------------------
# roots that this process knows


class RootMemory:
    """Roots of supervoxels at one instant, the last `REMEMBERED` or so.

    Two generations of sorted arrays: the younger grows until it is half of what is allowed, then it becomes the older
    one, whose place it takes. Roots at an instant never change, so nothing here grows old.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        empty = np.empty(0, np.uint64)
        self._young = self._old = (empty, empty)

    def look_up(self, ids: Ids) -> tuple[npt.NDArray[np.bool_], Ids]:
        """Return which of some ascending ids are known, and their roots (0 where not)."""
        known, roots = np.zeros(len(ids), bool), np.zeros(len(ids), np.uint64)
        for keys, values in (self._old, self._young):
            if not len(keys):
                continue
            at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            here = keys[at] == ids
            roots[here] = values[at[here]]
            known |= here
        return known, roots

    def remember(self, ids: Ids, roots: Ids) -> None:
        """Keep the roots of ascending, distinct ids."""
        with self._lock:
            keys, values = self._young
            at = np.searchsorted(keys, ids)
            new = np.ones(len(ids), bool)
            new[at < len(keys)] = keys[at[at < len(keys)]] != ids[at < len(keys)]  # another thread may have asked, too
            merged = np.insert(keys, at[new], ids[new]), np.insert(values, at[new], roots[new])
            if len(merged[0]) > REMEMBERED // 2:
                self._old, merged = merged, (np.empty(0, np.uint64), np.empty(0, np.uint64))
            self._young = merged

    def __len__(self) -> int:
        return len(self._young[0]) + len(self._old[0])


_memories: OrderedDict[tuple[Any, Instant], RootMemory] = OrderedDict()
_lock = threading.Lock()


def _memory_of(table: Sequence[str], instant: Instant) -> RootMemory:
    with _lock:
        memory = _memories.pop((tuple(table), instant), None) or RootMemory()
        _memories[(tuple(table), instant)] = memory
        while len(_memories) > STATES:
            _memories.popitem(last=False)
        return memory


def clear_roots() -> None:
    """Forget all roots that this process knows."""
    global _lock
    _lock = threading.Lock()
    _memories.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=clear_roots)  # a lock may have been held by a thread that is not there
