"""Read a region: each chunk once, within the planned memory."""
