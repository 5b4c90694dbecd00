"""Plan an export: regions, memory, workers."""
