"""One image at several strengths side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.blocks import Block

from .limits import with_messages
from .masks_tab import MasksTab, Shown, finished, labels_of, picture
from .pictures import enlarged
from .tracing import STRENGTHS, IsStopped, Trace


class StrengthsRow:
    """Layout and events of the part "over stop steps", for the run that a tab shows.

    Args:
        tab: whose run it is.
    """

    def __init__(self, tab: MasksTab):
        self._tab = tab
        gr.Markdown(
            "### Over stop steps\n"
            "The same image, labels and seed at other strengths. The strength says how far the image is noised, and how"
            " many steps of guidance it has from there: the *stop step*, half of all steps at 0.5."
        )
        self.ask = gr.Button(f"Show this image at {len(STRENGTHS)} strengths", size="sm", elem_id="over-strengths")
        with gr.Row():
            self.pictures = {
                strength: picture(
                    f"Strength {strength:g}", buttons=[], height=160, min_width=110, elem_id=f"strength-{place}"
                )
                for place, strength in enumerate(STRENGTHS, start=1)
            }
        self.outputs = list(self.pictures.values())
        asked = gr.State(None)
        self.ask.click(
            lambda: ("Waiting for its turn …", time.monotonic()),
            None,
            [tab.status, asked],
            queue=False,
            api_visibility="private",
        ).then(
            with_messages(self.make),
            [tab.shown, asked],
            [tab.status, *self.outputs],
            api_name="over_strengths",
            concurrency_limit=1,
            show_progress="hidden",
        )
        self.cleared: dict[Block, Any] = dict.fromkeys(self.outputs)

    def make(self, shown: Shown | None, asked: float | None, visit: gr.Request) -> Iterator[dict]:
        """Make the row of the run that is shown.

        Args:
            shown: the run.
            asked: time of the monotonic clock when the button was pressed; None is now.
            visit: whose request it is.

        Yields:
            New values of some components.
        """
        trace = finished(shown)
        is_stopped = self._tab.runner.stops(visit.session_hash, asked or time.monotonic())
        yield {self._tab.status: f"Making {len(STRENGTHS)} strengths in one batch …"}
        row = self.row(trace, is_stopped)
        said = (
            f"{labels_of(trace.request)} at {len(STRENGTHS)} strengths: see below."
            if row
            else "Stopped before the end."
        )
        yield row | {self._tab.status: said}

    def row(self, trace: Trace, is_stopped: IsStopped) -> dict:
        """New pictures for the source and the request of a run; none if it was stopped."""
        made = self._tab.runner.over_strengths(trace.source, trace.request, is_stopped)
        shown = {self.pictures[strength]: enlarged(image) for strength, image in made.items()}
        return self.cleared | shown if made else {}
