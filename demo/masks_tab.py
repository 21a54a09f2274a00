"""The tab that makes an outlier and shows the masks of every step."""

from __future__ import annotations

import html
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.blocks import Block
from PIL import Image

from sona_pipeline import MASK_GRANULARITIES, fit, image_form

from .download import code_of, pack
from .labels import Suggestions
from .limits import SCALE, STEPS, checked_label, opened, upload, with_messages
from .pictures import COLOURS, SIDE, enlarged, overlay, strip
from .tracing import COMPARISONS, MASKS, IsStopped, Request, Runner, Trace

TERMS = {
    "remove_id_semantics": "remove ID semantics",
    "preserve_id_nuisance": "preserve ID nuisance",
    "add_ood_semantics": "add OOD semantics",
    "filter_ood_by_nuisance": "filter OOD by nuisance",
}
OVERS = ("source", "denoised image")
STRENGTH = 0.7
"""That the page starts with."""
PAUSE = 0.5
"""Seconds between two updates of the page."""


@dataclass
class Shown:
    """What the page needs of a finished run while its step slider is moved.

    Attributes:
        trace: the run.
        denoised: a picture for each step.
    """

    trace: Trace
    denoised: list[Image.Image]


class MasksTab:
    """Layout and, once `connect` is called, events.

    Args:
        runner: of the pipeline.
        suggestions: of OOD labels.
        model: how the code snippet names the checkpoint.
        examples: rows of image file, ID label and OOD label; the first is on the page when it is opened.
    """

    def __init__(self, runner: Runner, suggestions: Suggestions, model: str, examples: Sequence[tuple[str, str, str]]):
        self.runner, self.suggestions, self.model = runner, suggestions, model
        self.size, self.mode = image_form(runner.pipe, None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._draw_inputs(examples)
            with gr.Column(scale=2, min_width=300):
                self._draw_outcome()
                self.below_outcome = gr.Column()
        self.above_steps = gr.Column()
        self._draw_steps()

    def _draw_inputs(self, examples: Sequence[tuple[str, str, str]]) -> None:
        path, id_label, ood_label = examples[0]
        self.image = upload(path, label="Image", elem_id="source")
        self.id_label = gr.Textbox(id_label, label="ID label", info="what the image shows", elem_id="id-label")
        known = [names[0] for names in self.suggestions.labels]
        self.ood_label = gr.Dropdown(
            known[:200],
            value=ood_label,
            allow_custom_value=True,
            label="OOD label",
            info="what the outlier shall mean (free text)",
            elem_id="ood-label",
        )
        with gr.Row():
            gr.Markdown("Suggest a label that is")
            self.suggest = {rule: gr.Button(rule, size="sm", min_width=60) for rule in ("close", "far", "random")}
        with gr.Row():
            self.run = gr.Button("Run", variant="primary", elem_id="run")
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop")
        with gr.Accordion("Settings", open=False):
            self._draw_settings()
        gr.Examples(
            [list(row) for row in examples],
            [self.image, self.id_label, self.ood_label],
            label="Examples",
            examples_per_page=6,
            elem_id="examples",
        )

    def _draw_settings(self) -> None:
        self.is_random = gr.Checkbox(False, label="Draw the strength by the seed")
        self.strength = gr.Slider(0.02, 1.0, STRENGTH, step=0.01, label="Strength: how far to noise")
        self.steps = gr.Slider(1, STEPS, 50, step=1, label="Steps of the full schedule")
        self.scale = gr.Slider(0, SCALE, 10, step=0.5, label="Guidance scale")
        self.threshold = gr.Slider(0.01, 0.49, 0.2, step=0.01, label="Mask threshold: lambda, the share of a mask")
        self.granularity = gr.Radio(MASK_GRANULARITIES, value="channel", label="Granularity: what the share is of")
        self.terms = gr.CheckboxGroup(
            [(text, name) for name, text in TERMS.items()], value=list(TERMS), label="Terms of the guidance"
        )
        self.seed = gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed")
        self.compares = gr.Checkbox(True, label="Also with global guidance, and from the text alone")

    def _draw_outcome(self) -> None:
        self.status = gr.HTML("The example is being made …", elem_id="status")
        self.before_after = gr.ImageSlider(
            label="Source | outlier",
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
            max_height=420,
            elem_id="before-after",
        )
        with gr.Row():
            self.others = {
                name: picture(name.capitalize(), height=200, min_width=140, elem_id=name.replace(" ", "-"))
                for name in COMPARISONS
            }
        gr.Markdown("For comparison: the same seed with the OOD label everywhere, and from noise without the image.")

    def _draw_steps(self) -> None:
        self.shown = gr.State(None, time_to_live=3600)
        gr.Markdown(
            "### Masks of every step\n"
            "Where the guidance removes the ID meaning (red), keeps what surrounds it (blue: nuisance), and adds the"
            " OOD meaning (green: orange, without what the filter takes out because it is kept)."
        )
        with gr.Row():
            self.step = gr.Slider(1, 50, 1, step=1, label="Step, from noise to image", elem_id="step", scale=3)
            self.over = gr.Radio(OVERS, value=OVERS[0], label="Masks over the", scale=1)
        with gr.Row():
            self.denoised = picture("Denoised", min_width=150, height=220)
            self.masks = {
                name: picture(text, min_width=150, height=220, elem_id=f"mask-{name}") for name, text in MASKS.items()
            }
        gr.Markdown("All steps: the denoised image, and each mask over it")
        self.strip = picture(show_label=False, elem_id="strip")
        self.plot = gr.LinePlot(
            x="step",
            y="share",
            color="mask",
            y_title="% of the image",
            x_title="step",
            title="Part of the image under each mask",
            color_map={text: "#{:02x}{:02x}{:02x}".format(*COLOURS[name]) for name, text in MASKS.items()},
            height=280,
            elem_id="shares",
        )
        self.note = gr.Markdown("", elem_id="shares-note")
        with gr.Row():
            self.code = gr.Code(language="python", label="The same in Python", interactive=False, scale=3)
            self.download = gr.DownloadButton("Download pictures, masks and settings", elem_id="download", scale=1)

    def connect(self, cleared: dict[Block, Any]) -> None:
        """Connect the events.

        Args:
            cleared: components of other parts that a new run outdates, with their new values.
        """
        settings = [self.is_random, self.strength, self.steps, self.scale, self.threshold, self.granularity]
        settings += [self.terms, self.seed, self.compares]
        asked = gr.State(None)
        self.run.click(
            lambda: {self.status: "Waiting for its turn …", asked: time.monotonic(), **cleared},
            None,
            [self.status, asked, *cleared],
            queue=False,
            api_visibility="private",
        ).then(
            with_messages(self.make),
            [self.image, self.id_label, self.ood_label, *settings, self.over, asked],
            self.outputs,
            api_name="make_outlier",
            concurrency_limit=1,
            show_progress="hidden",
        ).then(  # what was on its way to the page when the button was pressed may have come after it was cleared
            lambda: cleared, None, [*cleared], queue=False, show_progress="hidden", api_visibility="private"
        )
        self.stop.click(self.end, None, self.status, queue=False, api_name="stop")
        for rule, button in self.suggest.items():
            button.click(
                with_messages(lambda label, rule=rule: self.suggestions(checked_label(label, "ID label"), rule)),
                self.id_label,
                self.ood_label,
                api_name=f"suggest_{rule}",
            )
        for moved in (self.step.change, self.over.change):
            moved(
                self.show_step,
                [self.shown, self.step, self.over],
                self._pictures(),
                trigger_mode="always_last",
                show_progress="hidden",
                api_visibility="private",
            )

    @property
    def outputs(self) -> list:
        """Components that a run changes."""
        run = [self.status, self.before_after, *self.others.values(), self.shown, self.step, *self._pictures()]
        return [*run, self.strip, self.plot, self.note, self.code, self.download]

    def _pictures(self) -> list[gr.Image]:
        return [self.denoised, *self.masks.values()]

    def make(
        self,
        path: str | None,
        id_label: str,
        ood_label: str,
        is_random: bool,
        strength: float,
        steps: int,
        guidance_scale: float,
        mask_threshold: float,
        mask_granularity: str,
        terms: list[str] | None,
        seed: int,
        compares: bool,
        over: str,
        asked: float | None,
        visit: gr.Request,
    ) -> Iterator[dict]:
        """Make an outlier, and update the page while it is made.

        Args:
            path: of the uploaded image.
            id_label, ood_label: what it shows, and what it shall mean.
            is_random: draw the strength by the seed instead of taking `strength`.
            strength, steps, guidance_scale, mask_threshold, mask_granularity: see `tracing.Request`.
            terms: those of `TERMS` that are on.
            seed: 0 or more.
            compares: also make what `Runner.compare` does.
            over: one of `OVERS`.
            asked: time of the monotonic clock when the button was pressed; None is now.
            visit: whose request it is.

        Yields:
            New values of some components.
        """
        is_stopped = self.runner.stops(visit.session_hash, asked or time.monotonic())
        request = Request(
            id_label=checked_label(id_label, "ID label"),
            ood_label=checked_label(ood_label, "OOD label"),
            strength=None if is_random else strength,
            num_inference_steps=int(steps),
            guidance_scale=guidance_scale,
            mask_threshold=mask_threshold,
            mask_granularity=mask_granularity,
            **{name: name in (terms or ()) for name in TERMS},
            seed=int(seed),
        )
        with tempfile.TemporaryDirectory(prefix="sona-") as folder:  # gone when the page has its copies
            archive = Path(folder) / "sona.zip"
            yield from self.made(self.source_of(path), request, is_stopped, archive, compares, over)

    def source_of(self, path: str | None) -> Image.Image:
        """An uploaded image as the model takes it; raises what `opened` does."""
        return fit(opened(path), self.size, self.mode)

    def made(
        self,
        source: Image.Image,
        request: Request,
        is_stopped: IsStopped,
        archive: Path,
        compares: bool = True,
        over: str = OVERS[0],
    ) -> Iterator[dict]:
        """The updates of `make` for a request that is checked; the last has all of a run that was not stopped."""
        trace, last = Trace(source, request), 0.0
        for trace in self.runner.trace(source, request, is_stopped):
            if time.monotonic() - last > PAUSE:
                last = time.monotonic()
                yield {self.status: _progress(trace), **self._mask_pictures(trace, len(trace), trace.source)}
        if not len(trace):
            yield {self.status: "Stopped before the first step."}
            return
        drawn = {self.before_after: _before_after(trace.source, trace.outlier)} if trace.outlier else {}
        yield {self.status: "Drawing …", **drawn}
        shown = self._shown(trace, is_stopped)
        others = self.runner.compare(source, request, is_stopped) if compares and trace.outlier else {}
        yield self._outcome(shown, others, over, archive)

    def _shown(self, trace: Trace, is_stopped: IsStopped) -> Shown:
        """The trace with its latents decoded; if the visitor stops that, the source stands for those left."""
        was_stopped, denoised = is_stopped(), []
        for picture in self.runner.decoded(trace.latents):
            denoised.append(_reduced(picture))
            if is_stopped() and not was_stopped:
                break
        denoised += [_reduced(trace.source)] * (len(trace) - len(denoised))
        trace.latents.clear()
        return Shown(trace, denoised)

    def _outcome(self, shown: Shown, others: dict[str, Image.Image], over: str, archive: Path) -> dict:
        """All that the page shows of a run that is done, or was stopped."""
        trace = shown.trace
        numbers = [trace.stop_step - k for k in range(len(trace))]
        sheet = strip(shown.denoised, numbers, trace.masks, MASKS)
        code = code_of(trace, self.model, self.runner.pipe.device.type)
        pack(archive, trace, others, sheet, code)
        middle = (len(trace) + 1) // 2
        pictures = {self.others[name]: others.get(name) and enlarged(others[name]) for name in self.others}
        return {
            self.status: _end_of(trace),
            self.before_after: trace.outlier and _before_after(trace.source, trace.outlier),
            **pictures,
            self.shown: shown,
            self.step: gr.Slider(minimum=1, maximum=max(2, len(trace)), value=middle),
            **self._step_pictures(shown, middle, over),
            self.strip: sheet,
            self.plot: _shares(trace),
            self.note: note_of(trace.request, self.runner.pipe.latent_channels),
            self.code: code,
            self.download: str(archive),
        }

    def show_step(self, shown: Shown | None, step: int, over: str) -> dict:
        """The pictures of one step of the last run, counted from 1."""
        if shown is None:
            return {self.denoised: gr.skip()}
        return self._step_pictures(shown, min(max(1, int(step)), len(shown.trace)), over)

    def _step_pictures(self, shown: Shown, step: int, over: str) -> dict:
        denoised = shown.denoised[step - 1]
        under = denoised if over == OVERS[1] else shown.trace.source
        return {self.denoised: enlarged(denoised), **self._mask_pictures(shown.trace, step, under)}

    def _mask_pictures(self, trace: Trace, step: int, under: Image.Image) -> dict:
        under = enlarged(_reduced(under))
        return {
            self.masks[name]: overlay(under, shares[step - 1], COLOURS[name]) for name, shares in trace.masks.items()
        }

    def end(self, visit: gr.Request) -> str:
        """Stop what this visitor is running."""
        self.runner.stop(visit.session_hash)
        return "Stopped: what was running ends after the step it is at."

    def leave(self, visit: gr.Request) -> None:
        """Stop what a visitor who has gone away was running."""
        self.runner.stop(visit.session_hash)


def finished(shown: Shown | None) -> Trace:
    """The run that the page shows, with its outlier.

    Raises:
        ValueError: there is none, or it was stopped.
    """
    if shown is None or shown.trace.outlier is None:
        raise ValueError("There is no outlier yet: press Run, and wait for its end.")
    return shown.trace


def note_of(request: Request, channels: int) -> str:
    """What lambda means for the plot of mask shares, in words.

    Args:
        request: what was asked for.
        channels: of the latent image.
    """
    share = request.mask_threshold
    percent, most = f"{100 * share:g} %", f"{min(100, 100 * share * channels):g} %"
    strongest = "where the label matters most (nuisance: least)"
    if request.mask_granularity == "spatial":
        what = f"{percent} of the places, {strongest}, for all {channels} channels of the latent image together."
    else:
        of = f"each of the {channels} channels" if request.mask_granularity == "channel" else f"all {channels} channels"
        what = (
            f"{percent} of the entries of {of} of the latent image, {strongest}. The plot counts a place as soon as one"
            f" channel has it: {percent} where all channels choose the same places, up to {most} where each chooses"
            " others."
        )
    return f"lambda = {share:g}: a mask takes {what} The filter then takes from the OOD mask what is kept as nuisance."


def picture(label: str | None = None, **layout: Any) -> gr.Image:
    """A picture to look at and to take home."""
    layout = {"buttons": ["download", "fullscreen"]} | layout
    return gr.Image(label=label, interactive=False, format="png", **layout)


def _reduced(image: Image.Image) -> Image.Image:
    """A large image scaled down to what the page shows of it."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    return image


def _before_after(source: Image.Image, outlier: Image.Image) -> tuple[Image.Image, Image.Image]:
    return enlarged(source, 400), enlarged(outlier, 400)


def _progress(trace: Trace) -> str:
    done, total = len(trace), trace.stop_step
    return f'Step {done} of {total} <progress value="{done}" max="{total}" style="width: 60%"></progress>'


def labels_of(request: Request) -> str:
    """Both labels, as HTML."""
    return f"{html.escape(request.id_label)} → {html.escape(request.ood_label)}"


def _end_of(trace: Trace) -> str:
    labels = labels_of(trace.request)
    if trace.outlier is None:
        return f"{labels}: stopped after {len(trace)} of {trace.stop_step} steps; the masks up to there are below."
    return f"{labels}, noised up to step {trace.stop_step} of {trace.request.num_inference_steps}."


def _shares(trace: Trace) -> pd.DataFrame:
    """The rows of the plot."""
    rows = [
        {"step": k, "share": share, "mask": text}
        for name, text in MASKS.items()
        for k, share in enumerate(trace.covered(name), start=1)
    ]
    return pd.DataFrame(rows)
