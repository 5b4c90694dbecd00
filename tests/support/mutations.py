"""The number of mutated inputs that fuzz tests try."""

from __future__ import annotations

import os

# HYPOTHESIS_PROFILE=ci tries ten thousand.
COUNT = 10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "ci" else 2_000
PART = 1_000
"""Number of inputs of one test; several processes share them."""
STARTS = range(1_000, 1_000 + COUNT, PART)
"""The first seed of each part."""
