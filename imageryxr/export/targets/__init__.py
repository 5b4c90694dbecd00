"""What an export can write: each format is a `Target` in a module of its own."""

from __future__ import annotations

from imageryxr.export.store.local import disk_errors
from imageryxr.export.targets.base import Target

__all__ = ["Target", "disk_errors"]
