"""The formats that exports write: a `Target` each, in a module of its own."""

from __future__ import annotations

from imageryxr.export.store.local import disk_errors
from imageryxr.export.targets.base import Target

__all__ = ["Target", "disk_errors"]
