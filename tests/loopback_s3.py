"""An S3 server on 127.0.0.1 with one bucket, for whatever speaks the protocol.

with LoopbackS3() as s3:
    subprocess.run(command, env=os.environ | s3.environment)
    s3.files()["folder/file"]
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib import request

import boto3
from moto.server import ThreadedMotoServer

from sona_pipeline.data import remote

BUCKET = "photos"


class LoopbackS3:
    """The server; a context manager, in which this process speaks to it as well.

    Attributes:
        environment: variables by which programs find the server, and are let in.
    """

    def __enter__(self) -> "LoopbackS3":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        self._server.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "loopback",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }
        self._before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        remote._file_system.cache_clear()  # which has the keys and places of before
        # What servers of this process have is in one place.
        request.urlopen(request.Request(f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST"))
        self._client = boto3.client("s3")
        self._client.create_bucket(Bucket=BUCKET)
        return self

    def __exit__(self, *_) -> None:
        for name, value in self._before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        remote._file_system.cache_clear()
        self._server.stop()

    def put(self, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def delete(self, name: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=name)

    def get(self, name: str) -> bytes | None:
        """A file, or None if it is not there."""
        try:
            return self._client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None

    def files(self, folder: str = "") -> dict[str, bytes]:
        """All files whose names begin with the folder, by what follows."""
        found = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=folder):
            for entry in page.get("Contents", ()):
                body = self._client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"]
                found[entry["Key"].removeprefix(folder)] = body.read()
        return found


@contextmanager
def without_credentials() -> Iterator[None]:
    """No keys in the environment of this process."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    before = {name: os.environ.pop(name, None) for name in names}
    remote._file_system.cache_clear()
    try:
        yield
    finally:
        remote._file_system.cache_clear()
        os.environ.update({name: value for name, value in before.items() if value is not None})
