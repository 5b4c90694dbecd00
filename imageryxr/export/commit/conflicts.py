"""Find what else is at a target: files that must not be replaced, and other exports with files of the same names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from msgspec.structs import replace

from imageryxr.core.bbox import DIMS
from imageryxr.errors import ManifestError, Message, TargetError, TargetExistsError, param, warn
from imageryxr.export.commit.manifest import Header, ManifestStore, Phase, open_manifest, open_place
from imageryxr.export.store.local import HIDDEN, is_remote
from imageryxr.export.targets.base import Target
from imageryxr.export.targets.stack import Stack, slice_names

END = ".manifest"

# Levels of parent folders that are searched for manifests that may list files of a target.
FOLDERS_ABOVE = 2


def manifest_name(target: Target) -> tuple[str, str]:
    """Return the folder of a target's manifest, and the name without its ending.

    The manifest of a stack is in a hidden folder. It is named after the pattern, with a short hash of it, because
    characters that file names cannot have are replaced.
    """
    root = target.root.rstrip("/")
    if isinstance(target, Stack):
        readable = re.sub(r"[^\w.-]+", "_", target.pattern)
        digest = hashlib.sha256(target.pattern.encode()).hexdigest()[:8]
        return f"{root}/{HIDDEN}", f"{readable}-{digest}{END}"
    folder, _, name = root.rpartition("/")
    if is_remote(target.root) and folder.endswith(":/"):
        raise TargetError(f"{target.place} is a whole bucket; give a path in it, such as {target.place}/overlay")
    return folder or "/", name + END


def _files_folder(folder: str) -> str:
    """Return the folder of the files that the manifests in a folder describe."""
    return folder.removesuffix(f"/{HIDDEN}")


class OverlappingExports:
    """Other exports whose files have the names of a target's files: in its folder, a parent folder or a subfolder."""

    def __init__(self, target: Target, folder: str, name: str) -> None:
        self._target, self._folder, self._name = target, folder, name

    @contextmanager
    def hold_locks(self) -> Iterator[list[tuple[ManifestStore, Header]]]:
        """Exclude other processes from these exports until the block ends, or raise `TargetError`."""
        with ExitStack() as locks:
            found = []
            for folder, name in self._overlapping_manifests():
                manifest = open_manifest(folder, name)
                try:
                    locks.enter_context(manifest.hold_lock())
                except TargetError as error:
                    raise TargetError(
                        f"{self._target.place} has files of the same names as another export that is being written, "
                        f"with the manifest {folder}/{name}.json: {error}"
                    ) from error
                header = manifest.load()
                if header is not None:
                    found.append((manifest, header))
            yield found

    def replace(self, others: list[tuple[ManifestStore, Header]]) -> None:
        """Record in their manifests that this export replaced some of their files."""
        target = self._target
        by = target.pattern if isinstance(target, Stack) else target.root.rpartition("/")[2]
        for manifest, header in others:
            # if it was killed in the phase "publishing", its result may exist in part
            phase: Phase = "writing" if header.phase == "publishing" else header.phase
            # it may not replace or remove the files of this export
            manifest.save(replace(header, phase=phase, replaces=False, direct=False, outdated=(), replaced=by))

    def _overlapping_manifests(self) -> list[tuple[str, str]]:
        target = self._target
        if target.kind not in ("files", "single"):
            return []
        mine = (
            {f"{target.root}/{key}" for key in target.identifying_keys()} if target.kind == "files" else {target.root}
        )
        return [
            (folder, name)
            for folder, name in self._candidate_manifests(mine)
            if not mine.isdisjoint(_listed_files(folder, name, needed=folder.startswith(_files_folder(self._folder))))
        ]

    def _candidate_manifests(self, files: set[str]) -> list[tuple[str, str]]:
        """Return folder and name of the manifests that could list some of these files."""
        home = _files_folder(self._folder)
        found = _files_at(home)
        above = _parent_folders(home)
        for folder in above:
            with suppress(TargetError, OSError):  # parent folders need not be readable
                found |= _files_at(folder)
        inside = {file.rpartition("/")[0] for file in files} - {home, *above}
        if inside and is_remote(home):  # one listing of the prefix instead of one per folder
            parts = (f"{home}/{name}".rpartition("/") for name in open_place(home).names())
            found |= {(folder, n) for folder, _, n in parts if _files_folder(folder) in inside}
        else:
            for folder in inside:
                found |= _files_at(folder)
        names = {(folder, n.removesuffix(".json")) for folder, n in found if n.endswith(f"{END}.json")}
        return sorted(names - {(self._folder, self._name)})


def _files_at(folder: str) -> set[tuple[str, str]]:
    """Return the files of a folder and of the hidden folder in it."""
    hidden = f"{folder.rstrip('/')}/{HIDDEN}"
    return {(place, name) for place in (folder, hidden) for name in open_place(place).top_level_files()}


def _parent_folders(folder: str) -> list[str]:
    """Return the nearest parent folders: patterns in them, with a folder per slice, may have files in this one."""
    found = []
    for _ in range(FOLDERS_ABOVE):
        folder = folder.rpartition("/")[0]
        if not folder or folder.endswith("/"):
            break
        found.append(folder)
    return found


def _listed_files(folder: str, name: str, *, needed: bool) -> list[str]:
    """Return the files that a manifest lists; an empty list if it cannot be read.

    If `needed`, a manifest in a bucket that cannot be read raises `TargetError`.
    """
    try:
        header = open_manifest(folder, name).load()
    except ManifestError:  # reported when that export continues
        return []
    except TargetError:
        if needed and is_remote(folder):
            raise
        return []
    except PermissionError:  # another user's manifest
        return []
    if header is None or header.kind == "tree":
        return []
    if header.kind == "single":
        return [f"{folder}/{name.removesuffix(END)}"]
    return [] if header.names is None else [f"{_files_folder(folder)}/{key}" for key in slice_names(header.names)]


# ---------------------------------------------------------------------------------------------------------
# targets that exist


def refuse_foreign_folder(target: Target) -> None:
    """Raise `TargetExistsError` if a folder that is not an exported volume is at the target or at one of its files.

    `overwrite=True` permits replacing images and volumes, not other folders.
    """
    root = target.root
    reason = Message("is not replaced, even with ", param("overwrite", True))
    if is_remote(root):
        return
    if target.kind != "tree":
        files = [root] if target.kind == "single" else [f"{root}/{key}" for key in target.identifying_keys()]
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
    count = f" ({len(existing)} of the {len(target.identifying_keys())} files do)" if target.kind == "files" else ""
    since = ""
    if header is not None and header.replaced:
        since = f", and the export to {header.replaced} has since replaced files of this call"
    return Message(
        f"{existing[0]} exists{count}{since}; give ",
        param("overwrite", True),
        f" to replace {'them' if count else 'it'} when the export is complete, or give another target",
    )


def describe_difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Return a text that lists the differences between two calls, which their manifests describe."""
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


def warn_of_strays(target: Target) -> None:
    """Warn of other files that match the pattern of a stack, such as those of a longer stack that was replaced."""
    if not isinstance(target, Stack):
        return
    # These files look like slices of this stack, but may belong to the user, so they are not removed.
    fields = re.split(r"{[^}]*}", os.path.basename(target.pattern))
    like = re.compile(r"-?[\d.]+".join(map(re.escape, fields)))
    mine = {f"{target.root}/{name}" for name in target.identifying_keys()}
    folders = {name.rpartition("/")[0] for name in mine}
    there = {f"{folder}/{f}" for folder in folders for f in open_place(folder).top_level_files() if like.fullmatch(f)}
    strays = sorted(os.path.basename(f) for f in there - mine)
    if strays:
        one = len(strays) == 1
        warn(
            f"{len(strays)} {'file' if one else 'files'} beside the {len(mine)} of this stack "
            f"{'matches' if one else 'match'} its pattern but {'was' if one else 'were'} not written by this "
            f"export: {', '.join(strays[:3])}{', …' if len(strays) > 3 else ''}; remove {'it' if one else 'them'} "
            f"if an earlier export wrote {'it' if one else 'them'}"
        )
