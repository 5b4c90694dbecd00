"""The command ``imageryxr cache info | clear``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from imageryxr.errors import OptionError
from imageryxr.sources.fetch.disk_cache import VARIABLE, DiskCache, Usage, absolute_folder

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show or clear the disk cache of remote chunks.")

CacheFolder = Annotated[
    Path | None, typer.Option("--folder", help=f"Folder of the cache. Default: the environment variable {VARIABLE}.")
]
_NOTHING = Usage(0, 0, None)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def info(folder: CacheFolder = None, as_json: Json = False) -> None:
    """Print the number and the size of the cached chunks."""
    cache = _open(folder)
    _print(cache, "contains {}", cache.usage() if cache.exists else _NOTHING, as_json)


@app.command()
def clear(folder: CacheFolder = None, as_json: Json = False) -> None:
    """Remove all cached chunks; other files in the folder are kept."""
    cache = _open(folder)
    _print(cache, "contained {}, which were removed", cache.clear() if cache.exists else _NOTHING, as_json)


def _open(folder: Path | None) -> DiskCache:
    place = folder or os.environ.get(VARIABLE)
    if not place:
        raise OptionError(f"no cache folder is given; give --folder, or set {VARIABLE}")
    return DiskCache(absolute_folder(place), create=False)


def _print(cache: DiskCache, sentence: str, usage: Usage, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": cache.folder, **usage._asdict()}))
        return
    if not cache.exists:
        print(f"{cache.folder} contains no cache of imageryxr")
        return
    entries = f"{usage.entries:,} {'entry' if usage.entries == 1 else 'entries'}, {usage.size / 1e6:,.1f} MB"
    oldest = usage.oldest and time.strftime("; the oldest was used at %Y-%m-%d %H:%M", time.localtime(usage.oldest))
    print(f"{cache.folder} {sentence.format(entries)}{oldest or ''}")
