"""What the detector says about the source and the outlier of a run, side by side."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import gradio as gr
from gradio.blocks import Block

from sona_pipeline import Detector

from .detector_tab import histogram, verdict
from .limits import with_messages
from .masks_tab import MasksTab, finished
from .tracing import Trace

SIDES = ("source", "outlier")


class OutlierVerdict:
    """Layout and events, for the run that a tab shows.

    Args:
        tab: whose run it is.
        detector: calibrated, so that there is a threshold.
        worker: the one thread that models run in.
    """

    def __init__(self, tab: MasksTab, detector: Detector, worker: Executor):
        self._detector, self._worker = detector, worker
        self.ask = gr.Button("Ask the detector about source and outlier", size="sm", elem_id="ask-detector")
        with gr.Row():
            self.verdicts = [gr.HTML("", min_width=140, elem_id=f"verdict-{side}") for side in SIDES]
        self.plot = gr.Plot(show_label=False, visible=False, elem_id="verdict-plot")
        self.outputs = [*self.verdicts, self.plot]
        self.ask.click(
            with_messages(lambda shown: self.said(finished(shown))),
            tab.shown,
            self.outputs,
            api_name="ask_detector",
            concurrency_limit=1,
        )
        self.cleared: dict[Block, Any] = dict(zip(self.outputs, ["", "", gr.Plot(None, visible=False)]))

    def said(self, trace: Trace) -> dict:
        """New values of the components: the verdicts on a run, and both scores among those of ID images."""
        images = zip(SIDES, (trace.source, trace.outlier))
        said = {side: self._worker.submit(self._detector, image).result() for side, image in images if image}
        texts = [f"{side.capitalize()}: {verdict(self._detector, one)}" for side, one in said.items()]
        plot = gr.Plot(histogram(self._detector, said), visible=True)
        return dict(zip(self.outputs, [*texts, plot]))
