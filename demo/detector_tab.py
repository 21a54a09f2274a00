"""The tab that asks a detector about an image."""

from __future__ import annotations

import html
from collections.abc import Mapping
from concurrent.futures import Executor

import gradio as gr
from matplotlib.figure import Figure
from PIL import Image

from sona_pipeline import Detection, Detector, draw_cam

from .limits import opened, upload, with_messages


class DetectorTab:
    """Layout and events.

    Args:
        detector: calibrated, so that there is a threshold.
        examples: image files.
        worker: the one thread that models run in.
    """

    def __init__(self, detector: Detector, examples: list[str], worker: Executor):
        self.detector, self._worker = detector, worker
        gr.Markdown(
            f"The detector knows: {_some(detector.classes)}. It gives every image a score, and says that it has never"
            " seen the like of what scores above its threshold."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self.image = upload(label="Image", elem_id="scored")
                self.ask = gr.Button("Ask the detector", variant="primary", elem_id="score")
                gr.Examples([[path] for path in examples], [self.image], label="Examples")
            with gr.Column(scale=2, min_width=300):
                self.verdict = gr.HTML("", elem_id="verdict")
                self.histogram = gr.Plot(show_label=False)
                self.cam = gr.Image(
                    label="Where the score comes from (Grad-CAM)",
                    interactive=False,
                    format="png",
                    buttons=["download", "fullscreen"],
                    height=300,
                    elem_id="cam",
                )
        self.ask.click(
            with_messages(self.score),
            self.image,
            [self.verdict, self.histogram, self.cam],
            api_name="score_image",
            concurrency_limit=1,
        )

    def score(self, path: str | None) -> tuple[str, Figure, Image.Image | None]:
        """Verdict, histogram and Grad-CAM of an uploaded image; no Grad-CAM where the network has no feature maps."""
        image = opened(path)
        said = self._worker.submit(self.detector, image).result()
        try:
            cam, remark = self._worker.submit(draw_cam, self.detector, image).result(), ""
        except ValueError as error:
            cam, remark = None, f"<br>{html.escape(str(error))}"
        return verdict(self.detector, said) + remark, histogram(self.detector, {"this image": said}), cam


def _some(names: list[str], most: int = 50) -> str:
    """The first names, and how many there are besides."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def verdict(detector: Detector, said: Detection) -> str:
    """What a detector said, as HTML, with the score that its threshold is for."""
    word = {True: "<b>never seen the like (OOD)</b>", False: "<b>known</b>", None: "no threshold"}[said.is_ood]
    label, score = html.escape(said.label), f"{detector.score} {said.score:.2f}"
    return f"{word}: {label} with confidence {said.confidence:.1%}, {score}"


def histogram(detector: Detector, said: Mapping[str, Detection]) -> Figure:
    """The ID scores by their percentiles, the threshold, and the scores of up to two images by name."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    if detector.id_quantiles:
        axis.hist(detector.id_quantiles, bins=25, density=True, color="#9ab7d3", label="ID validation images")
    if detector.thresholds is not None:
        for threshold in sorted({detector.thresholds[detector.classes.index(one.label)] for one in said.values()}):
            axis.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.2f}")
    for (name, one), colour in zip(said.items(), ("#3a3", "#d33")[-len(said) :]):
        axis.axvline(one.score, color=colour, linewidth=2, label=f"{name} {one.score:.2f}")
    axis.set(xlabel=f"{detector.score} (higher = more OOD)", ylabel="density")
    axis.legend(fontsize=8)
    return figure
