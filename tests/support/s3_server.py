"""An S3 server (moto) on this machine and its buckets."""

from __future__ import annotations

import itertools
import logging
import sys
from contextlib import contextmanager

import pytest

SECRET = "5ec7e7-of-the-bucket"
NUMBERS = itertools.count()


@contextmanager
def serving_s3():
    """Run an S3 server and yield its URL."""
    module = pytest.importorskip("moto.server", reason="moto, which provides the S3 server, is not installed")
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # logging a line takes a third of the time of a request
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def fresh_bucket(server, monkeypatch):
    """Create a bucket on a server, whose credentials are put into the environment of this process."""
    boto3 = pytest.importorskip("boto3")
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": SECRET, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setattr(sys.modules["imageryxr.export.plan.regions"], "START_VOXELS", 1 << 11)
    name = f"bucket{next(NUMBERS)}"
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket=name)
    return Bucket(client, name)


class Bucket:
    def __init__(self, client, name):
        self.client, self.name = client, name

    def url(self, path):
        return f"s3://{self.name}/{path}"

    def names(self):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))

    def read(self, key):
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def contents(self):
        return {key: self.read(key) for key in self.names() if "manifest" not in key}

    def open_to_all(self):
        for key in self.names():
            self.client.put_object_acl(Bucket=self.name, Key=key, ACL="public-read")

    def fetch(self, folder):
        for key, data in self.contents().items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder
