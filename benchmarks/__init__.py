"""Benchmarks of imageryxr and its peers, measured in the same run.

``python -m benchmarks.report`` prints one table. ``asv run --config benchmarks/asv.conf.json`` tracks each row over the
history. ``tests/test_benchmarks.py`` runs each benchmark once on small data.
"""
