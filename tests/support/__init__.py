"""Servers, strategies and builders that several tests use."""
