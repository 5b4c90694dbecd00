"""Save palettes to files and load them, so that all figures of a paper use the same colours."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imageryxr.core.colors.ids import parse_key
from imageryxr.core.colors.parse import RGB, RGBA, hex_color, parse_color
from imageryxr.core.validate import check_path
from imageryxr.core.write_file import write_file
from imageryxr.errors import ColorError, OptionError, param


def save_palette(colors: Mapping[int, Any], path: str | os.PathLike[str]) -> Path:
    """Write the colours of ids to a file that `load_palette` reads.

    Parameters
    ----------
    colors : mapping
        Id → colour, as `palette` returns it and ``overlay(colors=…)`` accepts it. The types of a palette by type are
        not stored: save its table, for which `palette` returns the same colours.
    path : str or path
        ``….json``, an object of id → "#rrggbb"; or ``….csv``, with the columns id and color. An existing file is
        replaced, and a missing folder is created.

    Returns
    -------
    Path
        The path of the file.

    Raises
    ------
    ColorError
        If an id or a colour is invalid.
    OptionError
        If the name ends in neither .json nor .csv.
    TargetError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile, imageryxr as ix
    >>> path = ix.save_palette({864691135617152361: "red", 5: (0, 90, 255)}, tempfile.mkdtemp() + "/cells.json")
    >>> print(path.read_text())
    {
      "864691135617152361": "#ff0000",
      "5": "#005aff"
    }
    """
    if not isinstance(colors, Mapping):
        raise ColorError(param("colors", colors), " is not a dict of colours by id; give, e.g., {5: 'red'}")
    target, kind = _check_suffix(path)
    rows = [(str(parse_key(key)), hex_color(parse_color(color))) for key, color in colors.items()]
    if kind == ".json":
        text = json.dumps(dict(rows), indent=2) + "\n"
    else:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([("id", "color"), *rows])
        text = lines.getvalue()
    write_file(target, text.encode("utf-8"))
    return target


class _Pairs(tuple[tuple[str, Any], ...]):
    """The entries of a JSON object, including entries with the same key."""


def load_palette(path: str | os.PathLike[str]) -> dict[int, RGB | RGBA]:
    """Read the colours of ids from a file that `save_palette` or another program wrote.

    Parameters
    ----------
    path : str or path
        ``….json`` or ``….csv``. Colours may have any form that ``overlay(colors=…)`` accepts.

    Returns
    -------
    dict of int to tuple of int
        ``{id: (r, g, b)}``, as `palette` returns it, for use as ``colors=``; ``(r, g, b, a)`` for colours that are not
        opaque.

    Raises
    ------
    ColorError
        If an entry is invalid, such as an id that a spreadsheet has rounded.
    OptionError
        If the name ends in neither .json nor .csv, or the file cannot be read.

    Examples
    --------
    >>> import tempfile, imageryxr as ix
    >>> ix.load_palette(ix.save_palette({7: "red"}, tempfile.mkdtemp() + "/cells.csv"))
    {7: (255, 0, 0)}
    """
    source, kind = _check_suffix(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the palette {source} cannot be read: {error}") from None
    pairs = _parse_json(text, source) if kind == ".json" else _parse_csv(text, source)
    out: dict[int, RGBA] = {}
    for number, (key, color) in enumerate(pairs, 1):
        if isinstance(key, str) and not key.strip().isdecimal():
            hint = ": a spreadsheet has rounded it; keep ids as text" if "E+" in key.upper() else ""
            raise ColorError(f"entry {number} of {source} has the id {key!r}, which is not an integer{hint}")
        try:
            known, chosen = parse_key(key.strip() if isinstance(key, str) else key), parse_color(color)
        except ColorError as error:
            raise ColorError(f"entry {number} of {source}: {error}") from None
        if out.setdefault(known, chosen) != chosen:
            raise ColorError(
                f"entry {number} of {source} gives the id {known} the colour {hex_color(chosen)}, but an earlier entry "
                f"gives it {hex_color(out[known])}; remove one of them"
            )
    return {known: color if color[3] < 255 else color[:3] for known, color in out.items()}


def _check_suffix(path: str | os.PathLike[str]) -> tuple[Path, str]:
    target = check_path("path", path)
    kind = target.suffix.lower()
    if kind not in (".json", ".csv"):
        raise OptionError(f"the palette file {str(target)!r} must end in .json or .csv")
    return target, kind


def _parse_json(text: str, source: Path) -> list[tuple[Any, Any]]:
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise ColorError(f"{source} is not JSON ({error})") from None
    if not isinstance(content, _Pairs):
        kind = type(content).__name__
        raise ColorError(f'{source} contains a {kind}, but must contain an object, such as {{"5": "#ff0000"}}')
    return list(content)


def _parse_csv(text: str, source: Path) -> list[tuple[Any, Any]]:
    if not text.strip():
        raise ColorError(f"{source} is empty; a palette begins with the line id,color")
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and rows[0][0].strip().lower() in ("id", "segment", "root_id", "segment_id"):
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise ColorError(f"row {number} of {source} has {len(row)} columns, but must have two: id, color")
    return [(key, color.strip()) for key, color in rows]
