"""What lies beside a target: how its own manifest is called there, and whose files are also its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from imageryxr.errors import ManifestError, TargetError
from imageryxr.export.commit.journal import BucketKeeper, Keeper, LocalKeeper
from imageryxr.export.commit.manifest import Header, Phase
from imageryxr.export.store.bucket import place_at
from imageryxr.export.store.local import is_remote
from imageryxr.export.targets.base import Target
from imageryxr.export.targets.slices import Stack, slice_names

END = ".manifest"
# The folder beside the files of a stack that holds its bookkeeping.
HIDDEN = ".imageryxr"
# In how many folders above a target manifests are looked for that may list its files.
FOLDERS_ABOVE = 2
# A field of a pattern as it stands in the name of a manifest: an axis, perhaps by nm, perhaps how it is written.
FIELD = re.compile(r"_(?=([zyx](?:_nm)?)(?:_(\d+(?:\.\d+)?[a-zA-Z]?|(?:\.\d+)?[a-zA-Z]))?_)")


def manifest_name(target: Target) -> tuple[str, str]:
    """Return the folder and the first part of the name of all bookkeeping of a target.

    A stack's is named by its pattern as far as files can be, and by a short hash of the pattern where another pattern
    would be called the same. It lies in a hidden folder; what an earlier version wrote beside the files stays there.
    """
    if not isinstance(target, Stack):
        folder, _, name = target.root.rstrip("/").rpartition("/")
        if is_remote(target.root) and folder.endswith(":/"):
            raise TargetError(f"{target.place} is a whole bucket; name a place in it, such as {target.place}/overlay")
        return folder or "/", name + END
    earlier = _stack_name(target.root, target.pattern)
    if _manifest(target.root, earlier) is not None:
        return target.root, earlier + END
    hidden = f"{target.root.rstrip('/')}/{HIDDEN}"
    return hidden, _stack_name(hidden, target.pattern) + END


def _stack_name(folder: str, pattern: str) -> str:
    """Return the name of a pattern's manifest in a folder."""
    readable = re.sub(r"[^\w.-]+", "_", pattern)
    hashed = f"{readable}-{hashlib.sha256(pattern.encode()).hexdigest()[:8]}"
    there = _manifest(folder, readable)
    owner = None if there is None else _pattern_of(there)
    other = owner not in (None, pattern) or _manifest(folder, hashed) is not None
    plain = owner == pattern or (not other and _usual(readable) == pattern)
    return readable if plain else hashed


def _home(folder: str) -> str:
    """Return the folder of the files that a manifest in a folder is of."""
    return folder.removesuffix(f"/{HIDDEN}")


def _usual(readable: str) -> str:
    """Return the one pattern whose manifest has a name without a hash: of all that would, that of the longest field."""
    found = []
    for match in FIELD.finditer(readable):
        axis, how = match.groups()
        field = axis if how is None else f"{axis}:{how}"
        start, stop = match.end(), match.end() + len(field)
        found.append((len(field), f"{readable[: start - 1]}{{{field}}}{readable[stop + 1 :]}"))
    return max(found, key=lambda f: f[0], default=(0, ""))[1]


def _manifest(folder: str, name: str) -> bytes | None:
    try:
        return place_at(folder).get(f"{name}{END}.json")
    except (IsADirectoryError, PermissionError):  # whoever needs it is told
        return None


def _pattern_of(manifest: bytes) -> str | None:
    """Return the pattern that a manifest is of, if it says so."""
    try:
        pattern = json.loads(manifest)["names"]["pattern"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return pattern if isinstance(pattern, str) else None


def keeper_of(folder: str, name: str) -> Keeper:
    """Return what keeps a manifest."""
    return BucketKeeper(folder, name) if is_remote(folder) else LocalKeeper(f"{folder}/{name}")


class Neighbours:
    """Other exports that list files of a target as theirs: in its folder, or in one above or below.

    Parameters
    ----------
    target : Target
    folder, name : str
        Of its own manifest.
    """

    def __init__(self, target: Target, folder: str, name: str) -> None:
        self._target, self._folder, self._name = target, folder, name

    @contextmanager
    def held(self) -> Iterator[list[tuple[Keeper, Header]]]:
        """Keep other processes from them until the block ends.

        Raises
        ------
        TargetError
            If a process is writing one of them.
        """
        with ExitStack() as kept:
            found = []
            for folder, name in self._sharing():
                keeper = keeper_of(folder, name)
                try:
                    kept.enter_context(keeper.locked())
                except TargetError as error:
                    raise TargetError(
                        f"{self._target.place} has files of the same names as another export, that of "
                        f"{folder}/{name}.json, which is being written: {error}"
                    ) from error
                header = keeper.load()
                if header is not None:
                    found.append((keeper, header))
            yield found

    def replace(self, held: list[tuple[Keeper, Header]]) -> None:
        """Note in their manifests that some of their files are not theirs any more."""
        target = self._target
        by = target.pattern if isinstance(target, Stack) else target.root.rpartition("/")[2]
        for keeper, header in held:
            # what was about to be brought to its place may be there in part
            phase: Phase = "writing" if header.phase == "publishing" else header.phase
            # what it might replace or remove, and what it had put there, was something else
            keeper.save(replace(header, phase=phase, replaces=False, direct=False, outdated=[], replaced=by))

    def _sharing(self) -> list[tuple[str, str]]:
        target = self._target
        if target.kind not in ("files", "single"):
            return []
        mine = {f"{target.root}/{key}" for key in target.occupied()} if target.kind == "files" else {target.root}
        return [
            (folder, name)
            for folder, name in self._manifests(mine)
            if not mine.isdisjoint(_listed(folder, name, needed=folder.startswith(_home(self._folder))))
        ]

    def _manifests(self, files: set[str]) -> list[tuple[str, str]]:
        """Return where manifests lie that could list some of these files: folder and first part of the name."""
        home = _home(self._folder)
        found = _names_at(home)
        above = _above(home)
        for folder in above:
            with suppress(TargetError, OSError):  # who may write here need not be allowed to look there
                found |= _names_at(folder)
        inside = {file.rpartition("/")[0] for file in files} - {home, *above}
        if inside and is_remote(home):  # one listing of all, and not one a folder
            parts = (f"{home}/{name}".rpartition("/") for name in place_at(home).names())
            found |= {(folder, n) for folder, _, n in parts if _home(folder) in inside}
        else:
            for folder in inside:
                found |= _names_at(folder)
        names = {(folder, n.removesuffix(".json")) for folder, n in found if n.endswith(f"{END}.json")}
        return sorted(names - {(self._folder, self._name)})


def _names_at(folder: str) -> set[tuple[str, str]]:
    """Return the files of a folder, and those of the hidden folder in it."""
    hidden = f"{folder.rstrip('/')}/{HIDDEN}"
    return {(place, name) for place in (folder, hidden) for name in place_at(place).beside()}


def _above(folder: str) -> list[str]:
    """Return the folders, not far above, of which a pattern with a folder a slice may come down to this one."""
    found = []
    for _ in range(FOLDERS_ABOVE):
        folder = folder.rpartition("/")[0]
        if not folder or folder.endswith("/"):
            break
        found.append(folder)
    return found


def _listed(folder: str, name: str, *, needed: bool) -> list[str]:
    """Return the files that a manifest is of; none if it cannot be read, unless that is for the network to tell."""
    try:
        header = keeper_of(folder, name).load()
    except ManifestError:  # whoever continues that is told
        return []
    except TargetError:
        if needed and is_remote(folder):
            raise
        return []
    except PermissionError:  # it is somebody else's
        return []
    if header is None or header.kind == "tree":
        return []
    if header.kind == "single":
        return [f"{folder}/{name.removesuffix(END)}"]
    return [] if header.names is None else [f"{_home(folder)}/{key}" for key in slice_names(header.names)]
