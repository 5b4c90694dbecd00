"""Stores of exported files: local folders and buckets, with file locks and leases."""
