"""The seeds of the mutated inputs that fuzz tests try: ten thousand of each kind, in parts that run on several cores."""

from __future__ import annotations

PART = 1_000
"""Number of inputs of one test."""
STARTS = range(1_000, 11_000, PART)
"""The first seed of each part."""
