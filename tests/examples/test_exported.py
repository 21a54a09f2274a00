"""The examples that use an exported detector without this package: pixels, verdicts, and the service over loopback."""

import io
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import run_exported
from PIL import Image

from sona_pipeline import TINY_DETECTOR, Detector, export_detector, load_detector, sample
from sona_pipeline.data.imaging import upright
from sona_pipeline.detection.export import metadata

EXAMPLES = Path(__file__).parents[2] / "examples"
WITHOUT_PACKAGE = """
import runpy, sys
for name in ("sona_pipeline", "torch", "torchvision"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script where neither this package nor torch can be imported."""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The bundled detector as an ONNX file."""
    return export_detector(TINY_DETECTOR, tmp_path_factory.mktemp("exported") / "detector.onnx").path


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(TINY_DETECTOR, "cpu")


# Pixels


def noise(mode: str, size: tuple[int, int]) -> Image.Image:
    generator = np.random.default_rng(len(mode) + sum(size))
    width, height = size
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 65536, (height, width), np.uint16))
    if mode == "I":
        return Image.fromarray(generator.integers(0, 65536, (height, width), np.int32))
    if mode == "P":
        return noise("RGB", size).quantize(32)
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = generator.integers(0, 256, (height, width, bands), np.uint8)
    return Image.frombytes(mode, size, values.tobytes()) if mode != "1" else noise("L", size).convert("1")


MODES = ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "I"]


def same_pixels(detector: Detector, path: Path) -> bool:
    with Image.open(path) as image:
        found = run_exported.pixels(image, metadata(detector))
    return found.dtype == np.uint8 and np.array_equal(found, detector.one(upright(path)).numpy())


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_the_detectors_for_all_modes_and_shapes(mode, crop_pct, tmp_path):
    detector = Detector(["a", "b"], image_size=32, crop_pct=crop_pct)
    for number, size in enumerate([(32, 32), (37, 37), (61, 40), (23, 90), (200, 7), (1, 1)]):
        path = tmp_path / f"{number}{'.tif' if mode in ('CMYK', 'I') else '.png'}"
        noise(mode, size).save(path)
        assert same_pixels(detector, path), (mode, size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photos_have_the_detectors_pixels(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise("RGB", (50, 31)).save(tmp_path / "photo.jpg", exif=exif)
    assert same_pixels(Detector(["a", "b"], image_size=16, crop_pct=0.8), tmp_path / "photo.jpg")


def test_transparency_of_a_palette_and_of_one_colour(tmp_path):
    detector = Detector(["a", "b"], image_size=16)
    noise("RGB", (20, 30)).quantize(8).save(tmp_path / "palette.png", transparency=3)
    noise("RGB", (2, 2)).resize((20, 30), Image.Resampling.NEAREST).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert same_pixels(detector, tmp_path / "palette.png") and same_pixels(detector, tmp_path / "key.png")


# Verdicts


def save_pictures(folder: Path) -> list[Path]:
    """A known, an unknown and an odd-shaped picture."""
    paths = [folder / name for name in ("known.png", "coat ü.png", "odd.jpg")]
    sample.id_images("test").image(0).save(paths[0])
    sample.near_ood()["coat"].image(3).save(paths[1])
    noise("RGB", (301, 120)).save(paths[2])
    return paths


def test_script_says_what_the_detector_says_without_this_package_or_torch(file, detector, tmp_path):
    paths = save_pictures(tmp_path)
    words = [sys.executable, "-c", WITHOUT_PACKAGE, EXAMPLES / "run_exported.py", file, *paths]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for path, line in zip(paths, lines):
        assert line.startswith(f"{path} ")
        check_verdict(json.loads(line.removeprefix(f"{path} ")), detector, path)


def check_verdict(found: dict, detector: Detector, path: Path) -> None:
    said = detector(path)
    assert found == {
        "label": said.label,
        "probability": pytest.approx(said.confidence, abs=1e-4),
        "score": pytest.approx(said.score, abs=1e-4),
        "is_ood": said.is_ood,
    }


def test_script_has_twenty_lines_beside_its_imports():
    code = (EXAMPLES / "run_exported.py").read_text().partition("\n\n\n")[2]
    assert len([line for line in code.splitlines() if line]) <= 20


# The service


@contextmanager
def service(file: Path) -> Iterator[httpx.Client]:
    """The service in a process of its own, and a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", WITHOUT_PACKAGE, EXAMPLES / "serve.py", file, "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                for _ in range(600):
                    assert process.poll() is None, process.stderr.read()
                    try:
                        client.get("/health")
                        break
                    except httpx.ConnectError:
                        time.sleep(0.1)
                yield client
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def client(file) -> Iterator[httpx.Client]:
    with service(file) as client:
        yield client


def test_service_says_what_the_detector_says(client, detector, tmp_path):
    health = client.get("/health").json()
    assert health == {"status": "ok", "classes": 6, "threshold": detector.threshold}
    for path in save_pictures(tmp_path):
        answer = client.post("/", content=path.read_bytes())
        assert answer.status_code == 200
        check_verdict(answer.json(), detector, path)


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(2**20)


def png_head(width: int, height: int) -> bytes:
    """A small PNG file that says it has so many pixels."""
    body = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", body), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def test_service_refuses_what_is_too_large_and_what_is_no_image_and_goes_on(client, tmp_path):
    for content in (bytes(17 * 2**20), chunks(40)):  # with its length said, and without
        answer = client.post("/", content=content)
        assert answer.status_code == 413 and "bytes" in answer.text
    for size in ((6000, 5000), (60_000, 50_000)):
        answer = client.post("/", content=png_head(*size))
        assert answer.status_code == 413 and "pixels" in answer.text
    photo = io.BytesIO()
    noise("RGB", (64, 64)).save(photo, "JPEG")
    vector = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for content in (b"", b"garbage", photo.getvalue()[:500], png_head(100, 100), vector):
        answer = client.post("/", content=content)
        assert answer.status_code == 400 and "cannot be read" in answer.text
    assert client.get("/").status_code == 405
    assert client.post("/", content=photo.getvalue()).status_code == 200


def test_service_has_at_most_sixty_lines():
    assert len((EXAMPLES / "serve.py").read_text().splitlines()) <= 60
