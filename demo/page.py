"""The SONA page: outliers with the masks of every step, and a detector to ask.

`sona demo` serves it for any checkpoint, and `app.py` for the embedded one, on a Space of the Hub.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import gradio as gr
from gradio import processing_utils
from PIL import Image
from sklearn.datasets import load_sample_images

from sona_pipeline import (
    EMBEDDED_MODELS,
    TINY_DETECTOR,
    Names,
    draw,
    embedded_labels,
    imagenet_labels,
    load_detector,
    load_pipeline,
    sample,
)

from .detector_tab import DetectorTab
from .labels import Suggestions
from .limits import PIXELS, UPLOAD_BYTES, in_range, refuse_address
from .masks_tab import MasksTab
from .outlier_verdict import OutlierVerdict
from .settings import PageSettings
from .strengths_row import StrengthsRow
from .tracing import Runner
from .worked_example import connect_all
from .worker import Worker

QUEUE, SESSIONS, MINUTE = 20, 50, 60
DRAWN = 10
"""Examples of the model for colour."""
INTRO = """# SONA: semantic outliers

An outlier is an image that a classifier should not know, made from one that it knows. The image is noised part-way and
denoised with a guidance that works region by region: it **removes what the image means** (the ID label,
in-distribution), **keeps what surrounds it**, and **adds the meaning of another label** (the OOD label,
out-of-distribution). The masks say where. Below is an example: pick another, or bring your own image, and press
Run."""
STYLE = "#source img, #scored img { width: 100%; height: 100%; object-fit: contain; }"
"""Small uploads fill their frame."""

Image.MAX_IMAGE_PIXELS = PIXELS
processing_utils.async_ssrf_protected_download = refuse_address
for field in (gr.Number, gr.Slider):
    field.preprocess = in_range(field.preprocess)  # type: ignore[method-assign] # for the page, and for what it updates


def build(worker: Worker, model: str = "tiny", detector: str | None = None, device: str | None = None) -> gr.Blocks:
    """The page, with an example in the making.

    Args:
        worker: that models run in.
        model: "tiny" or "cifar", a Hub id or a folder.
        detector: folder or Hub id; by default the embedded one, with "tiny" only.
        device: of both.
    """
    pipe = worker.submit(load_pipeline, model, device).result()
    labels: list[Names] = imagenet_labels()
    if model in EMBEDDED_MODELS:
        labels = [(name,) for name in embedded_labels(model)]
    if model == "tiny":
        detector = detector or str(TINY_DETECTOR)
    asked = worker.submit(load_detector, detector, device).result() if detector else None
    folder = _own_folder()
    rows = worker.submit(EXAMPLES.get(model, _photographs), folder).result()
    suggestions = worker.submit(Suggestions, pipe, labels, worker).result()
    with gr.Blocks(title="SONA", analytics_enabled=False, delete_cache=(10 * MINUTE, 60 * MINUTE)) as page:
        gr.Markdown(INTRO)
        with gr.Tab("Outlier and masks"):
            tab = MasksTab(Runner(pipe, worker), suggestions, _public_name(model), rows)
            with tab.below_outcome:
                verdict = OutlierVerdict(tab, asked, worker) if asked else None
            with tab.above_steps:
                row = StrengthsRow(tab)
        if asked:
            with gr.Tab("Detector"):
                DetectorTab(asked, _unknown(folder) if model == "tiny" else [], worker)
        page.unload(tab.leave)
        connect_all(page, tab, row, verdict, rows[0], folder / "example.zip", worker)
    return page.queue(max_size=QUEUE, default_concurrency_limit=4, api_open=False)


def _own_folder() -> Path:
    """A folder for examples, uploads and pictures, which is gone with the process."""
    folder = Path(tempfile.mkdtemp(prefix="sona-page-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    return folder


def _public_name(model: str) -> str:
    """The model as visitors may know it: of a folder the last part."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _examples(folder: Path) -> list[tuple[str, str, str]]:
    """ID images of the bundled sample, one a class, with an OOD label each."""
    images, rows = sample.id_images("test"), []
    for label, name in enumerate(images.classes):
        path = folder / f"{name}.png"
        images.image(images.labels.index(label)).save(path)
        rows.append((str(path), name, sample.OOD_LABELS[label % 2]))
    return rows


def _drawn(folder: Path) -> list[tuple[str, str, str]]:
    """Images that the model for colour draws of the first labels it knows, with another label each."""
    known = embedded_labels("cifar")
    images = draw("cifar", [f"a photo of a {label}" for label in known[:DRAWN]])
    rows = []
    for label, other, image in zip(known, known[DRAWN:], images):
        path = folder / f"{label}.png"
        image.save(path)
        rows.append((str(path), label, other))
    return rows


def _photographs(folder: Path) -> list[tuple[str, str, str]]:
    """scikit-learn's two photographs."""
    rows = []
    for pixels, labels in zip(load_sample_images().images, (("temple", "castle"), ("dahlia", "starfish"))):
        path = folder / f"{labels[0]}.png"
        Image.fromarray(pixels).save(path)
        rows.append((str(path), *labels))
    return rows


EXAMPLES = {"tiny": _examples, "cifar": _drawn}
"""Rows of path, ID label and OOD label for the embedded models, whose images are made in a folder."""


def _unknown(folder: Path) -> list[str]:
    """Test images for the detector: one of each test set."""
    known = sample.id_images("test")
    sets = {"known": known} | sample.near_ood() | sample.far_ood()
    paths = []
    for name, images in sets.items():
        paths.append(str(folder / f"detector {name}.png"))
        images.image(min(40, len(images) - 1)).save(paths[-1])
    return paths


def serve(settings: PageSettings | None = None) -> None:
    """Serve the page until it is stopped; without settings as a Space does, at the address that gradio is told of."""
    settings = settings or PageSettings(host=None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Worker() as worker:
        build(worker, settings.model, settings.detector, settings.device).launch(
            server_name=settings.host,
            server_port=settings.port,
            max_file_size=UPLOAD_BYTES,
            state_session_capacity=SESSIONS,
            footer_links=["api"],
            css=STYLE,
            ssr_mode=False,
        )
