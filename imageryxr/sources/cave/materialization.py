"""Requests to CAVE's materialization service: versions, tables, views and queries.

The endpoints and payloads are those of caveclient's ``MaterializationClient``, which has no timeouts. The answers to
queries are Arrow streams.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from imageryxr.core.bbox import Triple, check_resolution
from imageryxr.core.validate import parse_json, suggest_names
from imageryxr.errors import BoxError, ServerError, SourceError, SourceNotFoundError, TimestampError, format_value
from imageryxr.sources.base import clean_message
from imageryxr.sources.cave.datastack import Datastack
from imageryxr.sources.cave.timestamp import Instant, instant_of
from imageryxr.sources.fetch.attempt import Reply
from imageryxr.sources.fetch.auth import check_allowed
from imageryxr.sources.fetch.client import json_problem, request_service, server_message
from imageryxr.sources.fetch.connection import Connection

if TYPE_CHECKING:
    import pyarrow as pa

_QUERY = "return_pyarrow=True&arrow_format=True&split_positions=True&direct_sql_pandas=True"
Kind = Literal["table", "view"]


@dataclass(frozen=True)
class Snapshot:
    """The state of a datastack's tables that queries read."""

    version: int
    """Materialization of the instant; for a live query the last one before the instant."""
    instant: Instant
    is_live: bool = False
    """Whether the service must compute the state, because the instant has no materialization."""


@dataclass(frozen=True)
class TableInfo:
    """A table or view, as the service describes it."""

    name: str
    kind: Kind
    resolution: Triple
    """Nanometres per unit (x, y, z) of its positions."""
    reference: str | None = None
    """Table to whose rows the rows of this table refer."""


@dataclass(frozen=True)
class Materialization:
    """The materialization service of a datastack."""

    stack: Datastack
    connection: Connection

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"the materialization service of {self.stack.name!r}"

    def _base(self, api: int = 3) -> str:
        return f"{self.stack.local_server}/materialize/api/v{api}/datastack/{quote(self.stack.name, safe='')}"

    def address(self, table: TableInfo, snapshot: Snapshot) -> str:
        """Return the address of a table or view of a snapshot, without secrets."""
        folder = "views" if table.kind == "view" else "table"
        return f"{self._base()}/version/{snapshot.version}/{folder}/{quote(table.name, safe='')}"

    def find_snapshot(self, version: int | None, instant: Instant | None) -> Snapshot:
        """Return the snapshot of a version or instant, or that of the newest version if neither is given.

        Raises
        ------
        SourceNotFoundError
            If the version does not exist or has expired.
        TimestampError
            If the service cannot answer for the instant.
        """
        found = self._get(f"{self._base()}/metadata?expired=False", "its versions")
        entries = {
            e["version"]: e for e in found or [] if isinstance(e, dict) and isinstance(e.get("version"), int)
        } if isinstance(found, list) else {}  # fmt: skip
        times = {v: self._time_of(e) for v, e in entries.items() if e.get("valid") is not False}
        listed = f"there are {', '.join(map(str, sorted(times)))}" if times else "there are none"
        if version is not None:
            if version not in times:
                raise SourceNotFoundError(
                    f"the tables of version {version} of {self.stack.name!r} do not exist or have expired: {listed}; "
                    "open the datastack with one of these, or with timestamp= instead"
                )
            if instant is not None and times[version] != instant:
                raise TimestampError(
                    f"the tree was opened at {instant}, but version {version} of {self.stack.name!r} has the time "
                    f"{times[version]}; open the datastack again"
                )
            return Snapshot(version, times[version])
        if not times:
            raise SourceNotFoundError(f"{self.name} lists no valid version, so there are no tables to read")
        if instant is None:
            newest = max(times, key=lambda v: (times[v], v))
            return Snapshot(newest, times[newest])
        return self._snapshot_at(instant, times, entries, listed)

    def _snapshot_at(
        self, instant: Instant, times: dict[int, Instant], entries: dict[int, Any], listed: str
    ) -> Snapshot:
        same = [v for v, when in times.items() if when == instant]
        if same:
            return Snapshot(max(same), instant)
        before = [v for v, when in times.items() if when < instant]
        advice = f"; {listed}: open the datastack with version=…"
        if not before:
            raise TimestampError(
                f"{self.name} has no tables at {instant}, which lies before its first valid version{advice}"
            )
        last = max(before, key=lambda v: (times[v], v))
        if entries[last].get("parent_version") is not None:
            # The service would return the newest state of the parent, which may be that of another instant.
            raise TimestampError(
                f"{self.name} has tables at its versions only, because they belong to another datastack, but the tree "
                f"was opened at {instant}, between two versions{advice}"
            )
        return Snapshot(last, instant, is_live=True)

    def _time_of(self, entry: dict[str, Any]) -> Instant:
        time = entry.get("time_stamp")
        try:
            if isinstance(time, str):
                return instant_of(time, naive_is_utc=True)
        except TimestampError:
            pass
        raise ServerError(f"{self.name} returned the time {format_value(time)} for version {entry['version']}")

    def describe(self, name: str, snapshot: Snapshot) -> TableInfo:
        """Return the description of a table or view.

        Raises
        ------
        SourceNotFoundError
            If there is none of this name; the message lists similar ones.
        TimestampError
            If it is a view, and the snapshot lies between two versions.
        """
        base = f"{self._base()}/version/{snapshot.version}"
        tables = self._get(f"{self._base(2)}/version/{snapshot.version}/tables", "its tables") or []
        kind: Kind = "table"
        if name not in tables:
            views = self._get(f"{base}/views", "its views") or {}
            if name not in views:
                raise self._unknown_table_error(name, snapshot, [*map(str, tables), *map(str, views)])
            if snapshot.is_live:
                raise TimestampError(
                    f"{name!r} is a view, which exists only at versions, and the tree was opened at "
                    f"{snapshot.instant}; open the datastack with version={snapshot.version}, or another version"
                )
            kind = "view"
        folder = "views" if kind == "view" else "table"
        found = self._get(f"{base}/{folder}/{quote(name, safe='')}/metadata", f"{name!r}")
        if not isinstance(found, dict):
            raise ServerError(f"{self.name} returned no description of {name!r}")
        sizes = [found.get(f"voxel_resolution_{axis}") for axis in "xyz"]
        try:
            resolution = check_resolution(sizes)
        except BoxError:
            raise SourceError(
                f"{self.name} states the resolution {format_value(sizes)} for {name!r}, so its positions have no unit"
            ) from None
        reference = found.get("reference_table")
        return TableInfo(name, kind, resolution, reference if isinstance(reference, str) and reference else None)

    def _unknown_table_error(self, name: str, snapshot: Snapshot, names: list[str]) -> SourceNotFoundError:
        known = ", ".join(sorted(names)[:20]) + (" and others" if len(names) > 20 else "")
        return SourceNotFoundError(
            f"there is no table or view {name!r} in version {snapshot.version} of {self.stack.name!r}"
            f"{suggest_names(name, names)}; there are {known or 'none'}"
        )

    def query(
        self,
        table: TableInfo,
        snapshot: Snapshot,
        filters: dict[str, dict[str, Any]],
        *,
        limit: int,
        resolution: Triple,
    ) -> pa.Table:
        """Return rows of a table or view, joined with the rows that they refer to.

        `filters` has, for each filter of the service, such as ``filter_in_dict``, a dict table → column → value.
        `limit` is the largest number of rows, and `resolution` the nanometres per unit (x, y, z) of the returned
        positions.
        """
        data: dict[str, Any] = {**filters, "limit": limit, "desired_resolution": list(resolution)}
        base = f"{self._base()}/version/{snapshot.version}"
        reference = table.reference
        if snapshot.is_live:
            url = f"{self._base()}/query"
            data |= {"table": table.name, "timestamp": snapshot.instant.iso}
            if reference is not None:
                joined = [table.name, "target_id", reference, "id"]
                data |= {"join_tables": [joined], "suffixes": {table.name: "", reference: "_ref"}}
        elif reference is not None:
            url = f"{base}/query"
            data["tables"] = [[table.name, "target_id"], [reference, "id"]]
            data["suffix_map"] = {table.name: "", reference: "_ref"}
        else:
            url = f"{self.address(table, snapshot)}/query"
        reply = self._request("POST", f"{url}?{_QUERY}", f"{table.name!r}", json.dumps(data).encode(), _arrow_problem)
        if reply.status == 404:
            raise SourceNotFoundError(
                f"{table.name!r} of version {snapshot.version} of {self.stack.name!r} does not exist or has expired "
                f"({server_message(reply)[:200]})"
            )
        return read_arrow(reply.body)

    def _get(self, url: str, what: str) -> Any:
        """Return the JSON value at a URL, or None if it does not exist."""
        reply = self._request("GET", url, what, None, json_problem)
        return None if reply.status == 404 else parse_json(reply.body)

    def _request(self, method: str, url: str, what: str, body: bytes | None, check: Any) -> Reply:
        token, server = self.stack.token, self.stack.local_server
        reply = request_service(method, url, self.connection, token, body=body, check=check)
        check_allowed(reply, f"{what} of {self.name}", server, token, self.connection.access)
        if reply.status not in (200, 404):
            words = token.hide(server_message(reply)) if token else server_message(reply)
            raise ServerError(f"{self.name} answered HTTP {reply.status} for {what} {words}".rstrip())
        if reply.is_html:
            raise ServerError(f"{self.name} answered with HTML for {what}")
        return reply


def read_arrow(body: bytes) -> pa.Table:
    """Return the table of an Arrow stream."""
    import pyarrow as pa

    with pa.ipc.open_stream(body) as reader:
        return reader.read_all()


def _arrow_problem(reply: Reply) -> str:
    try:
        read_arrow(reply.body)
    except Exception as error:  # pyarrow raises its own exceptions, OSError and ValueError
        return f"the answer is not a complete Arrow stream ({clean_message(error)[:100]})"
    return ""
