"""``imageryxr info``: describe a source, or the layers of a Neuroglancer link, and test which levels can be read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imageryxr.cli.messages import command_text
from imageryxr.core.bbox import IndexBox, format_triple
from imageryxr.core.grid import Grid
from imageryxr.core.units import show_count
from imageryxr.errors import AuthError, ImageryError, MissingChunkError
from imageryxr.neuroglancer.fetch import load_state
from imageryxr.neuroglancer.layer_sources import resolve_first
from imageryxr.neuroglancer.open_layers import check_source, limit_time
from imageryxr.neuroglancer.state import parse_state
from imageryxr.sources.base import Level, Source, levels_by_resolution
from imageryxr.sources.cave.graphene import GrapheneSource
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.policy import Access

COARSE_FIRST = "its levels are listed from coarse to fine"


@dataclass(frozen=True)
class LevelState:
    """Whether a level can be read."""

    word: str = ""
    """``"sparse"``, ``"damaged"`` or ``"unreadable"``; an empty string if no problem was found."""
    reason: str = ""


def is_link(source: str) -> bool:
    """Return whether a source is a Neuroglancer link or state instead of the address of a layer."""
    text = source.strip()
    return "#!" in text or text.startswith("{") or text.lower().endswith(".json")


def show_source(source: str, timestamp: str | None, *, as_json: bool, reads: bool) -> bool:
    """Print a description of a source; return whether all its levels can be read, which is tested if `reads`."""
    layer, choices = resolve_first(source, None, timestamp=timestamp, missing="raise")
    states = _level_states(layer, reads)
    if as_json:
        print(json.dumps(_description(layer, states), indent=2))
    else:
        print("\n".join(_lines(layer, choices, states)))
    return _is_readable(states)


def show_link(link: str, *, allow_local: bool, as_json: bool, reads: bool) -> bool:
    """Print a description of the layers of a link; return whether all of them can be opened and read."""
    state = parse_state(load_state(link, access := Access(allow_local, from_link=True)))
    connection = Connection(access=access)
    found: list[dict[str, Any]] = []
    is_whole, began = True, time.monotonic()
    for link_layer in state.layers:
        try:
            check_source(link_layer, access)
            with limit_time(began):
                layer, choices = resolve_first(link_layer.source, None, missing="raise", connection=connection)
        except ImageryError as error:
            is_whole = False
            reason = command_text(error)
            found.append({"name": link_layer.name, "error": reason})
            _show(as_json, f"{link_layer.name!r} cannot be opened: {reason}")
            continue
        states = _level_states(layer, reads)
        is_whole &= _is_readable(states)
        found.append({"name": link_layer.name, **_description(layer, states)})
        _show(as_json, f"{link_layer.name!r}: " + "\n".join(_lines(layer, choices, states)))
    for left in state.skipped:
        found.append({"name": left.name, "left_out": left.reason})
        _show(as_json, f"{left.name!r} is left out: {left.reason}")
    if as_json:
        print(json.dumps({"layers": found}, indent=2))
    return is_whole


def _show(as_json: bool, text: str) -> None:
    if not as_json:
        print(text + "\n")


def _level_states(layer: Source, reads: bool) -> list[LevelState]:
    # A chunk of a graphene segmentation also needs a request for root ids, so its levels are not read.
    reads = reads and not isinstance(layer, GrapheneSource)
    return [_level_state(layer, level, reads) for level in layer.levels]


def _level_state(layer: Source, level: Level, reads: bool) -> LevelState:
    if level.placeholder:
        return LevelState()
    try:
        layer.check(level.mip)
        if reads:
            middle = tuple(n // 2 for n in level.grid.shape)
            layer.read(level.mip, IndexBox(middle, tuple(n + 1 for n in middle)))  # type: ignore[arg-type]
    except MissingChunkError:
        return LevelState("sparse", "the chunk in its middle is missing")
    except ImageryError as error:
        is_damaged = not isinstance(error, AuthError) and any(w in str(error) for w in ("damaged", "cut short"))
        return LevelState("damaged" if is_damaged else "unreadable", command_text(error))
    return LevelState()


def _is_readable(states: list[LevelState]) -> bool:
    return not any(state.word in ("damaged", "unreadable") for state in states)


def _is_coarse_first(layer: Source) -> bool:
    finest = levels_by_resolution(layer)
    listed = [level for level in layer.levels if not level.placeholder]
    return bool(listed) and math.prod(listed[0].grid.resolution) > math.prod(finest[0].grid.resolution)


def _lines(layer: Source, choices: dict[str, int], states: list[LevelState]) -> Iterator[str]:
    first = (levels_by_resolution(layer) or layer.levels)[0].grid
    yield layer.name
    yield f"{layer.layer_type}, {layer.dtype}, {show_count(len(layer.levels), 'level')}, {_extent(first)}"
    for what, count in choices.items():
        yield f"{show_count(count, what)}, {what}=0 to {what}={count - 1}"
    for key, value in layer.attrs.items():
        yield f"{key}: {value}"
    rows = [("mip", "size (x × y × z)", "resolution (nm)", "offset (x, y, z)", "chunk (x × y × z)", "encoding")]
    for level, state in zip(layer.levels, states, strict=True):
        grid = level.grid
        encoding = level.encoding + (", placeholder" if level.placeholder else "")
        encoding += f", {state.word}" if state.word else ""
        offset = ", ".join(f"{o:,}" for o in grid.voxel_offset)
        sizes = (
            format_triple(grid.shape[::-1]),
            format_triple(grid.resolution),
            offset,
            format_triple(level.chunks[::-1]),
        )
        rows.append((str(level.mip), *sizes, encoding))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    yield ""
    for row in rows:
        yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
    if _is_coarse_first(layer):
        yield f"note: {COARSE_FIRST}"
    for level, state in zip(layer.levels, states, strict=True):
        if state.word:
            yield f"note: mip {level.mip} is {state.word}: {state.reason}"


def _description(layer: Source, states: list[LevelState]) -> dict[str, Any]:
    return {
        "source": layer.name,
        "layer_type": layer.layer_type,
        "dtype": str(layer.dtype),
        "attrs": layer.attrs,
        "coarse_first": _is_coarse_first(layer),
        "levels": [
            {
                "mip": level.mip,
                "size": level.grid.shape[::-1],
                "resolution": level.grid.resolution,
                "voxel_offset": level.grid.voxel_offset,
                "chunk": level.chunks[::-1],
                "encoding": level.encoding,
                "placeholder": level.placeholder,
                "state": state.word or None,
                "reason": state.reason or None,
            }
            for level, state in zip(layer.levels, states, strict=True)
        ],
    }


def _extent(grid: Grid) -> str:
    return f"{format_triple([round(s / 1000, 3) for s in grid.bbox.size_nm])} µm"
