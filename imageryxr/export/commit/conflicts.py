"""Targets that an export must not replace, and the messages about them."""

from __future__ import annotations

import os
from typing import Any

from imageryxr.core.bbox import DIMS
from imageryxr.errors import Message, TargetExistsError, param
from imageryxr.export.commit.manifest import Header
from imageryxr.export.store.local import is_remote
from imageryxr.export.targets.base import Target


def refuse_foreign_folder(target: Target) -> None:
    """Raise `TargetExistsError` if a folder that is not an exported volume is at the target or at one of its files.

    `overwrite=True` permits replacing images and volumes, not other folders.
    """
    root = target.root
    reason = Message("is not replaced, even with ", param("overwrite", True))
    if is_remote(root):
        return
    if target.kind != "tree":
        files = [root] if target.kind == "single" else [f"{root}/{key}" for key in target.occupied()]
        folder = next((f for f in files if os.path.isdir(f)), None)
        if folder is not None:
            raise TargetExistsError(
                f"{folder} is a folder, but the export writes a file of this name; the folder {reason}: choose another "
                "target, or remove the folder yourself"
            )
        return
    if not os.path.isdir(root):
        return
    inside = sorted(os.listdir(root))
    if inside and not set(inside) & {"zarr.json", ".zattrs", ".zgroup", ".zarray", "info"}:
        raise TargetExistsError(
            f"{root} is a folder that contains {', '.join(inside[:3])}{', …' if len(inside) > 3 else ''} and no "
            f"volume; it {reason}: choose another target, or remove the folder yourself"
        )


def exists_message(target: Target, existing: list[str], header: Header | None) -> str:
    """Return the message that a target exists, with advice."""
    count = f" ({len(existing)} of the {len(target.occupied())} files do)" if target.kind == "files" else ""
    since = ""
    if header is not None and header.replaced:
        since = f", and the export to {header.replaced} has since replaced files of this call"
    return Message(
        f"{existing[0]} exists{count}{since}; give ",
        param("overwrite", True),
        f" to replace {'them' if count else 'it'} when the export is complete, or give another target",
    )


def describe_difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Return in words where two calls differ, by their manifests."""
    names = [k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
    if not names:
        return "of other voxels: a source, a box or an argument differs"
    return "; ".join(f"{n}: {_shorten(theirs.get(n), n)} there, {_shorten(mine.get(n), n)} here" for n in names[:3])


def _shorten(value: Any, name: str = "") -> str:
    if name == "axis" and value in (0, 1, 2):
        return DIMS[value]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        # names of sources are listed whole, because a truncated one identifies no source
        more = f" and {len(value) - 3} more" if len(value) > 3 else ""
        return (", ".join(value[:3]) + more) if more else " and ".join(value)
    text = str(value)
    return text if len(text) < 80 else text[:77] + "…"
