"""Requests to a table of a PyChunkedGraph server, which maps supervoxels to roots at an instant.

Protocol: https://github.com/CAVEconnectome/PyChunkedGraph. Existing clients are not used: cloud-volume rounds instants
up to whole seconds, caveclient has no timeouts, and both return zeros and supervoxels as if they were roots.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.validate import parse_json
from imageryxr.errors import (
    ClockWarning,
    ServerError,
    SourceError,
    SourceNotFoundError,
    TimestampError,
    param,
    warn,
)
from imageryxr.sources.address import Address
from imageryxr.sources.cave.root_cache import Ids, disk_of, memory_of
from imageryxr.sources.cave.timestamp import Instant, instant_of
from imageryxr.sources.fetch.attempt import Reply
from imageryxr.sources.fetch.auth import Token, check_allowed, find_token
from imageryxr.sources.fetch.budget import SERVICE_REQUESTS
from imageryxr.sources.fetch.client import json_problem, request_service, server_message
from imageryxr.sources.fetch.connection import DEFAULT_CONNECTION, Connection
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.url import parse_web_url

# Number of ids in one request, as in cloud-volume.
BATCH = 250_000
# Difference in seconds up to which two clocks are considered equal.
CLOCK_SECONDS = 2.0

_PATHS = re.compile(r"(https?://[^/]+)/(\w+)/(?:api/v\d+/table|api/v\d+|table|\d+\.\d+)/([\w.\-]+)/?$")


@dataclass(frozen=True)
class ChunkedGraph:
    """A table on a server; a plain value without open connections."""

    server: str
    """Address of the server, ``https://host``."""
    service: str
    """First part of its paths, such as ``segmentation``."""
    table: str
    """Name of the table."""
    token: Token | None = field(default=None, compare=False)
    """Token of requests."""
    connection: Connection = field(default=DEFAULT_CONNECTION, compare=False, repr=False)
    """Options of requests."""

    @property
    def name(self) -> str:
        """Address of the table, without secrets."""
        return f"graphene://{self.server}/{self.service}/table/{self.table}"

    def info(self) -> tuple[dict[str, Any], Instant | None]:
        """Return the table's ``info``, and the time of the server's clock.

        Raises
        ------
        SourceNotFoundError
            If there is no such table.
        SourceError
            If the ``info`` does not describe a graphene segmentation.
        AuthError, ServerError
            If access is denied or the request fails.
        """
        url = f"{self.server}/{self.service}/table/{self.table}/info"
        try:
            reply = request_service("GET", url, self.connection, self.token)
        except ServerError as error:
            # PyChunkedGraph answers 500 both for unknown tables and for its own faults.
            if "HTTP 500" in str(error) and self._is_up():
                raise self._missing_table_error(
                    "HTTP 500, with which a working server answers requests for unknown names"
                ) from error
            raise
        check_allowed(reply, self.name, self.server, self.token, self.connection.access)
        if reply.status == 404:
            raise self._missing_table_error("HTTP 404")
        if reply.status != 200:
            raise ServerError(f"{self.name}: the server answered HTTP {reply.status} for its info")
        found = self._json_object(reply)
        absent = [key for key in ("graph", "data_dir", "scales", "data_type") if key not in found]
        if absent:
            raise SourceError(
                f"the info of {self.name} does not describe a graphene segmentation: it has no {absent[0]!r}"
            )
        return found, _clock(reply)

    def oldest(self) -> Instant | None:
        """Return the first instant at which the graph has a state, or None if the server returns none."""
        reply = self._request("GET", "oldest_timestamp", missing_ok=True)
        if reply.status == 404:
            return None
        text = str(self._json_object(reply).get("iso"))
        try:
            return instant_of(text, naive_is_utc=True)
        except TimestampError:
            raise ServerError(
                f"{self.name}: the server returned {text[:80]!r} as the oldest timestamp, which is not a time"
            ) from None

    def roots(self, supervoxels: Ids, instant: Instant, layers: int | None, shift: int) -> Ids:
        """Return the root of each supervoxel at an instant, from the caches or by a request.

        `supervoxels` are ascending and distinct uint64[k], without 0. `layers` is the layer number of roots, and
        `shift` the number of bits after the layer number of an id. `ServerError` is raised if the request fails, or a
        returned id is not a root.
        """
        place = (self.server, self.service, self.table)
        memory, disk = memory_of(place, instant), disk_of(place, instant, self.connection)
        known, roots = memory.look_up(supervoxels)
        if disk is not None and not known.all():
            disk.load(supervoxels[~known], memory)
            known, roots = memory.look_up(supervoxels)
        unknown = supervoxels[~known]
        if unknown.size:
            found = np.concatenate([self._request_roots(part, instant) for part in _batches(unknown)])
            self._check_roots(unknown, found, instant, layers, shift)
            memory.remember(unknown, found)
            if disk is not None:
                disk.store(unknown, found)
            roots[~known] = found
        return roots

    def are_current(self, ids: Ids, instant: Instant) -> npt.NDArray[np.bool_]:
        """Return which ids are roots at an instant."""
        check = _list_check("is_latest", len(ids))
        reply = self._request("POST", f"is_latest_roots?timestamp={instant.seconds}", {"node_ids": ids.tolist()}, check)
        return np.array(self._json_object(reply)["is_latest"], dtype=bool)

    def creation_times(self, roots: Sequence[int]) -> dict[int, Instant]:
        """Return the creation time of each root; ids that are not roots are left out."""
        found = self._times(roots)
        # The server omits ids that are not roots but does not name them, so each id is requested on its own.
        if len(found) != len(roots):
            each = run_in_parallel(
                lambda root, stop: self._times([root]), roots, self.connection.concurrency or SERVICE_REQUESTS
            )
            return {root: times[0] for root, times in zip(roots, each, strict=True) if times}
        return dict(zip(roots, found, strict=True))

    def current_relatives(self, made: dict[int, Instant], instant: Instant) -> dict[int, list[int]]:
        """Return the ancestors and descendants of each root that are current at an instant.

        Parameters
        ----------
        made : dict
            Creation time of each root.
        instant : Instant
            Instant at which the relatives are current.
        """
        lines = run_in_parallel(
            lambda item, stop: self._lineage(*item, instant),
            list(made.items()),
            self.connection.concurrency or SERVICE_REQUESTS,
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
        # A root that is current at an earlier instant may be much older, so the whole past is requested.
        since = f"&timestamp_past={made.seconds}" if made <= instant else ""
        path = f"lineage_graph_multiple?timestamp_future={max(made, instant).seconds}{since}"
        reply = self._request("POST", path, {"root_ids": [root]}, _list_check("nodes", None), missing_ok=True)
        if reply.status != 200:
            return set()
        ids = [node.get("id") if isinstance(node, dict) else None for node in self._json_object(reply)["nodes"]]
        ids = [int(i) if isinstance(i, str) and re.fullmatch("[0-9]{1,20}", i) else i for i in ids]
        numbers = {i for i in ids if isinstance(i, int) and 0 <= i < 2**64}
        if len(numbers) < len(set(map(str, ids))):
            raise ServerError(f"{self.name} returned a lineage of root {root} whose nodes have no ids")
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
            size, expected = len(reply.body), 8 * len(supervoxels)
            if size == expected:
                return ""
            return f"the server returned {size} bytes of roots for {len(supervoxels)} supervoxels instead of {expected}"

        body = supervoxels.astype("<u8").tobytes()
        reply = self._request("POST", f"roots_binary?timestamp={instant.seconds}", body, check)
        return np.frombuffer(reply.body, "<u8").astype(np.uint64)

    def _check_roots(self, supervoxels: Ids, found: Ids, instant: Instant, layers: int | None, shift: int) -> None:
        bad = found == 0
        if layers is not None:
            bad |= (found >> np.uint64(shift)) != np.uint64(layers)
        else:
            bad |= found == supervoxels
        if bad.any():
            first = int(np.argmax(bad))
            raise ServerError(
                f"{self.name} has no root at {instant} for {int(bad.sum())} of {len(supervoxels)} supervoxels: for "
                f"{int(supervoxels[first])} it returned {int(found[first])}, which is not a root id; either the "
                "supervoxels belong to another table, or the instant lies before the graph's first"
            )

    def _json_object(self, reply: Reply) -> dict[str, Any]:
        found = parse_json(reply.body) if not json_problem(reply) else None
        if not isinstance(found, dict):
            raise ServerError(f"the answer of {self.name} is not a JSON object")
        return found

    def _is_up(self) -> bool:
        try:
            url = f"{self.server}/{self.service}/api/version"
            return request_service("GET", url, self.connection, self.token, check=lambda reply: "").status == 200
        except ServerError:
            return False

    def _missing_table_error(self, why: str) -> SourceNotFoundError:
        return SourceNotFoundError(
            f"there is no table {self.table!r} on {self.server}, or the server fails ({why}); check the name, or open "
            "the datastack with imageryxr.open_datastack, which finds its table"
        )


def graph_at(address: Address, *, token: Token | str | None, connection: Connection) -> ChunkedGraph:
    """Return the table at an address; makes no request.

    Raises
    ------
    SourceError
        If the address does not have the form of a graphene table.
    """
    found = _PATHS.match(address.url.removeprefix("middleauth+"))
    if found is None:
        raise SourceError(
            f"graphene://{address.public} is not the address of a table on a graph server; write "
            "graphene://https://HOST/segmentation/table/TABLE"
        )
    server, service, table = found.groups()
    place = parse_web_url(server)
    token = find_token(place.netloc, given=token)
    return ChunkedGraph(f"{place.scheme}://{place.netloc}", service, table, token, connection)


def pin_instant(graph: ChunkedGraph, timestamp: Any, clock: Instant | None) -> Instant:
    """Return the instant of a layer: the given timestamp, or the current time by the server's clock for None and "now".

    `TimestampError` is raised if the timestamp lies before the first state of the graph, which is requested, or in the
    future, where the state may still change.
    """
    now = _reconcile_clocks(graph, Instant.now(), clock)
    instant = parse_timestamp(timestamp)
    if instant is None:
        return now
    if instant > now.after(CLOCK_SECONDS):
        raise TimestampError(
            param("timestamp", text=str(instant)),
            f" lies in the future (now is {now}): the graph may still change until then; ",
            "leave ",
            param("timestamp"),
            " out for the current time",
        )
    oldest = graph.oldest()
    if oldest is not None and instant < oldest:
        raise TimestampError(
            param("timestamp", text=str(instant)),
            f" lies before the first state of {graph.name}, {oldest}, when there were no roots yet; give ",
            "a later timestamp, or ",
            param("agglomerate", False),
            " for supervoxels",
        )
    return instant


def parse_timestamp(timestamp: Any) -> Instant | None:
    """Return the instant of a timestamp, or None for None and "now".

    Raises
    ------
    TimestampError
        If the timestamp is not valid.
    """
    if timestamp is None or (isinstance(timestamp, str) and timestamp.strip().lower() == "now"):
        return None
    return timestamp if isinstance(timestamp, Instant) else instant_of(timestamp)


def _reconcile_clocks(graph: ChunkedGraph, here: Instant, clock: Instant | None) -> Instant:
    # An instant in the server's future is not used, because edits may still be made before it. The server states its
    # time in whole seconds.
    if clock is None:
        return here
    apart = (here.micros - clock.micros) / 1e6
    if -CLOCK_SECONDS <= apart <= 1 + CLOCK_SECONDS:
        return min(here, clock.after(1))
    warn(
        f"this machine's clock is {'ahead of' if apart > 0 else 'behind'} that of {graph.server} by {abs(apart):.0f} "
        f"s; the server's time, {clock}, is used as the current time",
        ClockWarning,
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
