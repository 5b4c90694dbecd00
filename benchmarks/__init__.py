"""How fast imageryxr is, beside its peers in the same run.

``python -m benchmarks.report`` prints one table; ``asv run --config benchmarks/asv.conf.json`` follows each row through
the history; ``tests/test_benchmarks.py`` runs all of them once, small.
"""
