"""What is not replaced, and how that is told."""

from __future__ import annotations

import os
from typing import Any

from imageryxr.core.bbox import DIMS
from imageryxr.errors import TargetExistsError
from imageryxr.export.commit.manifest import Header
from imageryxr.export.store.local import is_remote
from imageryxr.export.targets.base import Target


def refuse_foreign_folder(target: Target) -> None:
    """Raise `TargetExistsError` if there is a folder of other things at a target, or where one of its files would be.

    Whoever replaces an image does not mean a folder that has the name of one.
    """
    root = target.root
    but = "is not replaced, with overwrite=True neither"
    if is_remote(root):
        return
    if target.kind != "tree":
        files = [root] if target.kind == "single" else [f"{root}/{key}" for key in target.occupied()]
        folder = next((f for f in files if os.path.isdir(f)), None)
        if folder is not None:
            raise TargetExistsError(
                f"{folder} is a folder, where a file would be, and {but}; choose another target, or remove it yourself"
            )
        return
    if not os.path.isdir(root):
        return
    inside = sorted(os.listdir(root))
    if inside and not set(inside) & {"zarr.json", ".zattrs", ".zgroup", ".zarray", "info"}:
        raise TargetExistsError(
            f"{root} is a folder that holds {', '.join(inside[:3])}{', …' if len(inside) > 3 else ''}, and no volume; "
            f"it {but}; choose another target, or remove it yourself"
        )


def exists(target: Target, there: list[str], header: Header | None) -> str:
    """Return that a target exists, and what to do."""
    count = f" ({len(there)} of the {len(target.occupied())} files do)" if target.kind == "files" else ""
    since = ""
    if header is not None and header.replaced:
        since = f", and the export to {header.replaced} has since replaced what this call had made"
    return (
        f"{there[0]} exists{count}{since}; give overwrite=True to replace {'them' if count else 'it'} when the export "
        "is complete, or another target"
    )


def difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Return in words where two calls differ, as manifests tell of them."""
    names = [k for k in {**theirs, **mine} if theirs.get(k) != mine.get(k)]
    if not names:
        return "of other voxels: a source, a box or an argument of a verb differs"
    told = [f"{n}: {_short(theirs.get(n), n)} there, {_short(mine.get(n), n)} here" for n in names[:3]]
    return "; ".join(told)


def _short(value: Any, name: str = "") -> str:
    if name == "axis" and value in (0, 1, 2):
        return DIMS[value]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        # names of sources: a part of one is the name of nothing
        more = f" and {len(value) - 3} more" if len(value) > 3 else ""
        return (", ".join(value[:3]) + more) if more else " and ".join(value)
    text = str(value)
    return text if len(text) < 80 else text[:77] + "…"
