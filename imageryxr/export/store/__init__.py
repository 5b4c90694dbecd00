"""Where exports store bytes: folders and buckets, with locks and leases."""
