"""CAVE: datastacks, graphene segmentations, chunked graphs and timestamps."""
