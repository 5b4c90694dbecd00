"""Bookkeeping of exports: manifest, journal, conflicts, and publishing a complete result."""
