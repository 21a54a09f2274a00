"""The example that is on the page when it is opened."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from .masks_tab import STRENGTH, MasksTab
from .outlier_verdict import OutlierVerdict
from .strengths_row import StrengthsRow
from .tracing import IsStopped, Request
from .worker import Worker

PAUSE = 5.0
"""Seconds after which an example that made room for a visitor is tried again."""


class WorkedExample:
    """Made once, in the background, with whatever model the page has; whoever wants the models goes first.

    Args:
        make: gives new values of components, and can be stopped.
        worker: the one thread that models run in.

    Attributes:
        outcome: what `make` gave; empty until it is made, and if it cannot be.
        is_over: whether it is made, or cannot be.
    """

    def __init__(self, make: Callable[[IsStopped], dict], worker: Worker):
        self._make, self._worker = make, worker
        self.outcome: dict = {}
        self.is_over = False

    def start(self) -> None:
        """Make it in a thread of its own."""
        threading.Thread(target=self._make_in_the_end, name="worked example", daemon=True).start()

    def _make_in_the_end(self) -> None:
        try:
            while not self._worker.is_ending and not self._is_made_undisturbed():
                time.sleep(PAUSE)
        except Exception as error:  # the page is of use without it
            if not self._worker.is_ending:
                logging.getLogger(__name__).warning("The example that the page opens with was not made: %s", error)
        self.is_over = True

    def _is_made_undisturbed(self) -> bool:
        """Make it; False if it made room for somebody."""
        made_room = threading.Event()

        def is_stopped() -> bool:
            if self._worker.is_waited_for or self._worker.is_ending:
                made_room.set()
            return made_room.is_set()

        outcome = self._make(is_stopped)
        if not made_room.is_set():
            self.outcome = outcome
        return not made_room.is_set()


def connect_all(
    page: gr.Blocks,
    tab: MasksTab,
    row: StrengthsRow,
    verdict: OutlierVerdict | None,
    example: tuple[str, str, str],
    archive: Path,
    worker: Worker,
) -> None:
    """Connect the parts of the page, and have an example made, for those who run nothing before it is there.

    Args:
        page: that is being built.
        tab, row, verdict: its parts.
        example: image file, ID label and OOD label.
        archive: where the archive of the run shall be.
        worker: the one thread that models run in.
    """
    path, id_label, ood_label = example

    def make(is_stopped: IsStopped) -> dict:
        outcome: dict = {}
        request = Request(id_label, ood_label, strength=STRENGTH)
        for update in tab.made(tab.source_of(path), request, is_stopped, archive):
            if is_stopped():
                return {}
            outcome = update
        trace = outcome[tab.shown].trace
        return outcome | row.row(trace, is_stopped) | (verdict.said(trace) if verdict else {})

    worked = WorkedExample(make, worker)
    timer = gr.Timer(1)

    def look() -> dict:
        if not worked.is_over:
            return {timer: gr.skip()}
        return {timer: gr.Timer(active=False), tab.status: "", **worked.outcome}

    outputs = [timer, *tab.outputs, *row.outputs, *(verdict.outputs if verdict else ())]
    for event in (page.load, timer.tick):
        event(look, None, outputs, queue=False, show_progress="hidden", api_visibility="private")
    tab.connect({timer: gr.Timer(active=False), **row.cleared, **(verdict.cleared if verdict else {})})
    worked.start()
