"""Palettes on disk, so that the figures of a paper agree."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imageryxr.core.colors.ids import key_of
from imageryxr.core.colors.parse import RGB, RGBA, parse_color
from imageryxr.errors import ColorError, OptionError


def save_palette(colors: Mapping[int, Any], path: str | os.PathLike[str]) -> Path:
    """Write colours to a file, id by id, which `load_palette` reads again.

    Parameters
    ----------
    colors : mapping
        Id → colour, as `palette` returns it and ``overlay(colors=…)`` takes it.
    path : str or path
        ``….json``, an object of id → "#rrggbb"; or ``….csv``, with the columns id and color. A file that is there
        is replaced.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    ColorError
        If an id or a colour cannot be read.
    OptionError
        If the name ends otherwise.

    Examples
    --------
    >>> import tempfile
    >>> path = save_palette({864691135617152361: "red", 5: (0, 90, 255)}, tempfile.mkdtemp() + "/cells.json")
    >>> print(path.read_text())
    {
      "864691135617152361": "#ff0000",
      "5": "#005aff"
    }
    """
    target, kind = _kind(path)
    rows = [(str(key_of(key)), _hex(parse_color(color))) for key, color in colors.items()]
    if kind == ".json":
        text = json.dumps(dict(rows), indent=2) + "\n"
    else:
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([("id", "color"), *rows])
        text = lines.getvalue()
    target.write_text(text, encoding="utf-8")
    return target


class _Pairs(tuple[tuple[str, Any], ...]):
    """The entries of a JSON object, those with the same key as well."""


def load_palette(path: str | os.PathLike[str]) -> dict[int, RGB | RGBA]:
    """Read the colours that `save_palette` wrote, or a table of one's own.

    Parameters
    ----------
    path : str or path
        ``….json`` or ``….csv``; colours are anything that ``overlay(colors=…)`` reads.

    Returns
    -------
    dict of int to tuple of int
        ``{id: (r, g, b)}``, as `palette` gives it, to be given as ``colors=``; ``(r, g, b, a)`` of colours that are not
        opaque.

    Raises
    ------
    ColorError
        If it holds something else, such as ids that a spreadsheet has rounded.
    OptionError
        If the name ends otherwise, or there is no such file.

    Examples
    --------
    >>> import tempfile
    >>> load_palette(save_palette({7: "red"}, tempfile.mkdtemp() + "/cells.csv"))
    {7: (255, 0, 0)}
    """
    source, kind = _kind(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the palette {source} cannot be read: {error}") from None
    pairs = _from_json(text, source) if kind == ".json" else _from_csv(text, source)
    out: dict[int, RGBA] = {}
    for number, (key, color) in enumerate(pairs, 1):
        if isinstance(key, str) and not key.strip().isdecimal():
            hint = ": a spreadsheet has rounded it; keep ids as text" if "E+" in key.upper() else ""
            raise ColorError(f"entry {number} of {source} has the id {key!r}, which is no whole number{hint}")
        try:
            known, chosen = key_of(key.strip() if isinstance(key, str) else key), parse_color(color)
        except ColorError as error:
            raise ColorError(f"entry {number} of {source}: {error}") from None
        if out.setdefault(known, chosen) != chosen:
            raise ColorError(
                f"entry {number} of {source} gives the id {known} the colour {_hex(chosen)}, and an earlier one gives "
                f"it {_hex(out[known])}; leave one of them"
            )
    return {known: color if color[3] < 255 else color[:3] for known, color in out.items()}


def _kind(path: str | os.PathLike[str]) -> tuple[Path, str]:
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in (".json", ".csv"):
        raise OptionError(f"the palette file {str(target)!r} must end in .json or .csv")
    return target, kind


def _hex(color: RGBA) -> str:
    return "#" + bytes(color if color[3] < 255 else color[:3]).hex()


def _from_json(text: str, source: Path) -> list[tuple[Any, Any]]:
    try:
        held = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise ColorError(f"{source} is no JSON ({error})") from None
    if not isinstance(held, _Pairs):
        raise ColorError(f'{source} holds a {type(held).__name__}, and must hold an object, such as {{"5": "#ff0000"}}')
    return list(held)


def _from_csv(text: str, source: Path) -> list[tuple[Any, Any]]:
    if not text.strip():
        raise ColorError(f"{source} is empty, so was cut off; a palette begins with the line id,color")
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and rows[0][0].strip().lower() in ("id", "segment", "root_id", "segment_id"):
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise ColorError(f"row {number} of {source} has {len(row)} columns, and must have two: id, color")
    return [(key, color.strip()) for key, color in rows]
