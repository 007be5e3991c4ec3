"""A local server of S3, by moto."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def s3_bucket(name: str) -> Iterator[Any]:
    """The file system of fsspec with an empty bucket. Servers of a process share buckets, so each test names its own."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs")
    pytest.importorskip("flask")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in (
                ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
                ("AWS_ACCESS_KEY_ID", "x"),
                ("AWS_SECRET_ACCESS_KEY", "x"),
                ("AWS_DEFAULT_REGION", "us-east-1"),
            ):
                patch.setenv(key, value)
            system = fsspec.filesystem("s3", skip_instance_cache=True)
            system.mkdir(name)
            yield system
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
