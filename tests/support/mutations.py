"""Seeds of fuzz tests: ten thousand mutated inputs of each kind, in parts that can run on several cores."""

from __future__ import annotations

PART = 1_000
"""Number of inputs of one test."""
STARTS = range(1_000, 11_000, PART)
"""The first seed of each part."""
