"""Two different arrays, whose exports differ."""

from __future__ import annotations

from tests.support.export_jobs import Computed, array_of

A = array_of(Computed((12, 16, 16)))


B = array_of(Computed((16, 12, 16), seed=100))
