"""Write small files that are complete at any time."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from imageryxr.errors import TargetError


def write_file(target: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that the target is always complete; create its folder.

    Raises `TargetError` if the file cannot be written.
    """
    beside = target.with_name(f".{target.stem}-{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, target)
    except OSError as error:
        # The message of the OSError contains the name of the temporary file, which the caller does not know.
        raise TargetError(
            f"{target} cannot be written: creating a file in the folder {target.parent} failed "
            f"({error.strerror or error}); choose another folder, or check its permissions and free space"
        ) from error
    finally:
        with suppress(OSError):  # an error that removing the file repeats, such as a file in place of the folder
            beside.unlink(missing_ok=True)
