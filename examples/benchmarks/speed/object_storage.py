"""`sona generate` into a bucket of object storage on this machine beside a local folder."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from commands import generate, sona_process, written
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import sample

IMAGES = 256
FORMAT = "parquet"
BUCKET = "speed"
ADDRESS = f"s3://{BUCKET}"
SECONDS_UNTIL_UP = 120


def compare(rounds: int) -> list[Comparison]:
    """Shards in both; the bucket is that of moto's server, which speaks the protocol of S3 and keeps it in memory."""
    if missing := [name for name in ("moto", "s3fs") if importlib.util.find_spec(name) is None]:
        return [_comparison({}, f"not timed without {missing[0]}")]
    with (
        written(sample.id_images("train").take(range(IMAGES))) as (sources, folder),
        storage() as environment,
        sona_process(environment=environment) as sona,
    ):
        places = {"local folder": str(folder), "object storage": ADDRESS}
        things = {
            name: lambda place=place: sona(generate(sources, place, "--format", FORMAT))
            for name, place in places.items()
        }
        return [_comparison(rounds_in_turn(things, rounds))]


def _comparison(seconds: dict[str, list[float]], *notes: str) -> Comparison:
    ratios = (Ratio("object storage", "local folder"),) if seconds else ()
    return Comparison("embedded model", {"images": IMAGES}, IMAGES, "outliers", seconds, ratios, notes)


@contextmanager
def storage() -> Iterator[dict[str, str]]:
    """An empty bucket on this machine; gives the environment variables by which programs find it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    access = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, env=os.environ | access, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(port, address)
        yield access | {"AWS_ENDPOINT_URL": address}
    finally:
        server.terminate()
        server.wait()


def _make_bucket(port: int, address: str) -> None:
    from s3fs import S3FileSystem

    deadline = time.monotonic() + SECONDS_UNTIL_UP
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        if time.monotonic() > deadline:
            raise TimeoutError(f"moto's server did not answer within {SECONDS_UNTIL_UP} s")
        time.sleep(0.2)
    S3FileSystem(endpoint_url=address, key="key", secret="secret").mkdir(BUCKET)
