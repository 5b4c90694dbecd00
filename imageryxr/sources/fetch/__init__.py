"""Requests: addresses, credentials, transport, retries and limits."""
