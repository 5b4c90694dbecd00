"""CAVE datastacks, described by an info service or by a CAVEclient.

The info service is requested directly because caveclient has no timeouts, opens a web browser when terms of service are
not accepted, and makes further requests that are not needed here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from imageryxr.core.bbox import Triple, check_resolution
from imageryxr.core.validate import check_text, check_whole, parse_json, to_whole
from imageryxr.errors import (
    AddressError,
    OptionError,
    ServerError,
    SourceError,
    SourceNotFoundError,
    Wording,
    param,
)
from imageryxr.sources.address import parse_address
from imageryxr.sources.base import clean_message
from imageryxr.sources.cave.timestamp import Instant, instant_of
from imageryxr.sources.fetch.attempt import Reply
from imageryxr.sources.fetch.auth import Token, check_allowed, find_token
from imageryxr.sources.fetch.client import request_service
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.policy import Access, access_for_named_address
from imageryxr.sources.fetch.url import hide_secrets, parse_web_url

# CAVE's global server of datastacks, which is also the default of caveclient.
DEFAULT_SERVER = "https://global.daf-apis.com"


@dataclass(frozen=True)
class Datastack:
    """A datastack: the addresses of its layers and servers, and the resolution of its viewer."""

    name: str
    server: str
    image_source: str
    segmentation_source: str
    viewer_resolution: Triple | None
    """Unit (x, y, z) in nm of the coordinates that its viewer shows."""
    local_server: str
    """Server of the tables of the datastack."""
    token: Token | None
    version: int | None = None
    """Materialization version of the instant."""
    instant: Instant | None = None
    """Instant of the client or the version."""

    def connection_to(self, layer: Literal["image", "segmentation"], connection: Connection) -> Connection:
        """Return the connection for the servers of a layer, limited because the info service names them.

        Raises
        ------
        SourceError
            If the info service names an address on this machine or its network.
        """
        address = parse_address(self.image_source if layer == "image" else self.segmentation_source)
        what = f"the {layer}_source of the datastack {self.name!r}"
        return replace(connection, access=access_for_named_address(address, self.server, connection.access, what))


def find_datastack(
    client_or_name: Any,
    *,
    server_address: str | None = None,
    version: int | None = None,
    token: str | Token | None = None,
    connection: Connection,
) -> Datastack:
    """Return the description of a datastack by its name or a client; makes a request for a name and one for a version.

    The info service is `server_address`, or that of the client, or the one that caveclient stored for the datastack, or
    CAVE's global one. The instant is that of the materialization `version`, otherwise the client's version or
    timestamp, otherwise that of the version to which ``client.materialize`` is set.

    Raises
    ------
    SourceNotFoundError
        If there is no such datastack or version.
    AuthError, ServerError, SourceError
        If access is denied, the request fails, or the response is not valid.
    """
    by_name = isinstance(client_or_name, str)
    client = None if by_name else client_or_name
    name = client_or_name if by_name else _name_of(client)
    if server_address is not None:
        server = check_text("server_address", server_address, "a web address, e.g. 'https://global.daf-apis.com'")
    else:
        server = getattr(client, "server_address", None) or _stored_server(name) or DEFAULT_SERVER
    server = _web_address(server)
    found_token = find_token(parse_web_url(server).netloc, given=token, client=client)
    if client is None or server_address is not None:
        info = _request_info(name, server, found_token, connection)
    else:
        info = _info_from_client(client, name, found_token)
    found = _parse_info(name, server, info, found_token, connection.access)
    if version is not None:
        return _pin_version(found, version, connection)
    time = getattr(client, "timestamp", None)
    if time is not None:
        instant = instant_of(time, naive_is_utc=True)
        return replace(found, version=getattr(client, "version", None), instant=instant)
    version = _version_of_tables(client)
    return found if version is None else _pin_version(found, version, connection)


def _version_of_tables(client: Any) -> int | None:
    """Return the version to which a client's materialization service is set; makes no request.

    The private attributes are read because ``client.materialize`` and its ``version`` make requests.
    """
    tables = _plain_attribute(client, "_materialize", "materialize")
    version = _plain_attribute(tables, "_version", "version")
    return to_whole(version)


def _plain_attribute(obj: Any, *names: str) -> Any:
    """Return the first attribute that is stored in an object and is not None, without calling properties."""
    stored = getattr(obj, "__dict__", {})
    return next((stored[name] for name in names if stored.get(name) is not None), None)


def _name_of(client: Any) -> str:
    if not hasattr(client, "info") or not hasattr(client, "auth"):
        raise OptionError(
            f"{type(client).__name__} is neither the name of a datastack nor a CAVEclient; write e.g. "
            "open_datastack('minie65_public')"
        )
    name = getattr(client, "datastack_name", None)
    if not name:
        raise OptionError("the CAVEclient has no datastack; create it as CAVEclient('NAME'), or give the name")
    return str(name)


def _info_from_client(client: Any, name: str, token: Token | None) -> dict[str, Any]:
    try:
        found = client.info.get_datastack_info()
    except Exception as error:  # the client raises its own types of errors, with messages of servers
        message = f"{type(error).__name__}: {clean_message(error)}"
        problem = token.hide(message) if token else message
    else:
        if isinstance(found, dict):
            return found
        problem = f"its info is a {type(found).__name__}"
    raise ServerError(
        f"the {type(client).__name__} returned no info of the datastack {name!r}: {problem}; create a new client, or ",
        "give the name of the datastack and server_address=",
    )


def _web_address(server: str) -> str:
    server = server.strip()
    url = (server if "://" in server else f"https://{server}").rstrip("/")
    try:
        if not url.startswith(("http://", "https://")) or re.search("[?#]", url):
            raise AddressError(f"{hide_secrets(url)!r} is not the address of a server")
        if parse_web_url(url).userinfo:
            raise AddressError("it contains a user or a password, but CAVE servers require tokens: give token=…")
    except AddressError as error:
        raise OptionError(
            param("server_address", hide_secrets(server)),
            f" is not a web address ({error}); write e.g. 'https://global.daf-apis.com'",
        ) from None
    return url


def _stored_server(name: str) -> str | None:
    # In this file caveclient stores the server that a user passed for a datastack.
    path = Path(os.path.expanduser("~/.cloudvolume/secrets/cave_datastack_to_server_map.json"))
    try:
        found = parse_json(path.read_text())
    except (OSError, ValueError):
        return None
    server = found.get(name) if isinstance(found, dict) else None
    return server if isinstance(server, str) else None


def _request_info(name: str, server: str, token: Token | None, connection: Connection) -> dict[str, Any]:
    url = f"{server}/info/api/v2/datastack/full/{quote(name, safe='', errors='replace')}"
    reply = _request(url, f"the datastack {name!r}", server, token, connection)
    if reply.status == 404:
        raise SourceNotFoundError(
            f"there is no datastack {name!r} on {server}; check the name, or give its server: ",
            Wording("open_datastack(…, server_address='https://…')", "--server-address https://…"),
        )
    return _json_object(reply, f"{server} (datastack {name!r})")


def _request(url: str, what: str, server: str, token: Token | None, connection: Connection) -> Reply:
    reply = request_service("GET", url, connection, token)
    check_allowed(reply, what, server, token, connection.access)
    if reply.status not in (200, 404):
        raise ServerError(f"{server} answered HTTP {reply.status} for {what}")
    return reply


def _json_object(reply: Reply, name: str) -> dict[str, Any]:
    found = parse_json(reply.body)
    if not isinstance(found, dict):
        raise ServerError(f"{name} answered with a {type(found).__name__} instead of a JSON object")
    return found


def _parse_info(name: str, server: str, info: dict[str, Any], token: Token | None, access: Access) -> Datastack:
    volume = info.get("aligned_volume")
    image = volume.get("image_source") if isinstance(volume, dict) else None
    segmentation = info.get("segmentation_source")
    if not isinstance(image, str) or not isinstance(segmentation, str) or not image or not segmentation:
        absent = "segmentation_source" if isinstance(image, str) and image else "aligned_volume.image_source"
        raise SourceError(f"the datastack {name!r} on {server} has no {absent}, so there is no such layer to open")
    sizes = [info.get(f"viewer_resolution_{axis}") for axis in "xyz"]
    known = all(isinstance(s, int | float) and s > 0 for s in sizes)
    local = _local_server(name, server, info.get("local_server"))
    if token is not None and token.header_for(server, access) is not None:
        # The info service receives the token and could pass it on, so the servers that it names may receive it.
        token = token.with_hosts(*_hosts_of(local, image, segmentation))
    unit = check_resolution(sizes) if known else None
    return Datastack(name, server, image.strip(), segmentation.strip(), unit, local, token)


def _local_server(name: str, server: str, address: Any) -> str:
    if not isinstance(address, str) or not address.strip():
        return server
    try:
        return _web_address(address)
    except OptionError:
        raise SourceError(
            f"the local_server of the datastack {name!r} on {server} is not a web address: {hide_secrets(address)!r}"
        ) from None


def _hosts_of(*addresses: str) -> list[str]:
    found = []
    for address in addresses:
        try:
            found.append(parse_web_url(parse_address(address).url).netloc)
        except AddressError:
            continue
    return found


def _pin_version(stack: Datastack, version: int, connection: Connection) -> Datastack:
    version = check_whole("version", version, expected="the number of a materialization, e.g. 1078")
    base = f"{stack.local_server}/materialize/api/v3/datastack/{quote(stack.name, safe='')}"
    what = f"version {version} of {stack.name}"
    reply = _request(f"{base}/version/{version}", what, stack.local_server, stack.token, connection)
    if reply.status == 404:
        raise SourceNotFoundError(
            f"there is no materialization {version} of {stack.name!r}: {_available_versions(stack, base, connection)}"
        )
    time = _json_object(reply, what).get("time_stamp")
    if not isinstance(time, str):
        raise ServerError(f"{stack.local_server} returned no time for {what}")
    return replace(stack, version=version, instant=instant_of(time, naive_is_utc=True))


def _available_versions(stack: Datastack, base: str, connection: Connection) -> str:
    try:
        reply = _request(f"{base}/versions", f"versions of {stack.name}", stack.local_server, stack.token, connection)
        found = parse_json(reply.body) if reply.status == 200 else []
    except ServerError:
        found = []
    numbers = [v for v in found if isinstance(v, int)] if isinstance(found, list) else []
    listed = ", ".join(map(str, sorted(numbers)))
    return f"the versions are {listed}" if listed else "it may have expired; give timestamp= instead"
