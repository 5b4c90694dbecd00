"""Measurements of segmentations, and cutouts."""

from __future__ import annotations

from imageryxr.measure.segments import measure

__all__ = ["measure"]
