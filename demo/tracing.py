"""One image through the pipeline, with what the guidance saw at every step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from queue import Queue
from typing import Any

import numpy as np
import torch
from PIL import Image

from sona_pipeline import SONAMixin

from .worker import Worker

MASKS = {
    "id_semantic_mask": "ID semantics",
    "id_nuisance_mask": "ID nuisance",
    "ood_unfiltered_mask": "OOD, before filter",
    "ood_semantic_mask": "OOD, after filter",
}
"""Callback tensors of the pipeline, and what they are called on the page."""
PROMPT = "a photo of a {}"
COMPARISONS = ("global guidance", "text only")
STRENGTHS = tuple(k / 8 for k in range(1, 9))
"""Side by side in the row over stop steps."""
VISITORS, DECODED = 1000, 4
"""Visitors whose stops are remembered, and latents that are decoded together."""
IsStopped = Callable[[], bool]
_END = object()


@dataclass(frozen=True)
class Request:
    """What a visitor asked for; names and ranges are those of `SONAPipeline`.

    Attributes:
        strength: None draws it by the seed.
    """

    id_label: str
    ood_label: str
    strength: float | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 10.0
    mask_threshold: float = 0.2
    mask_granularity: str = "channel"
    remove_id_semantics: bool = True
    preserve_id_nuisance: bool = True
    add_ood_semantics: bool = True
    filter_ood_by_nuisance: bool = True
    seed: int = 0

    def arguments(self) -> dict:
        """The arguments of the call, without image and generator."""
        given = asdict(self)
        prompts = {f"{kind}_prompt": PROMPT.format(given.pop(f"{kind}_label")) for kind in ("id", "ood")}
        return prompts | {name: value for name, value in given.items() if name != "seed"}


@dataclass
class Trace:
    """A run, step by step.

    Attributes:
        source: the image at the model's size.
        request: what was asked for.
        stop_step: that the image was noised up to; 0 until the first step is done.
        latents: `[C, h, w]` after each step, until they are decoded.
        masks: for each name of `MASKS` the share `[h, w]` of the latent channels under the mask, at each step.
        outlier: the result, None until the run is done.
    """

    source: Image.Image
    request: Request
    stop_step: int = 0
    latents: list[torch.Tensor] = field(default_factory=list)
    masks: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in MASKS})
    outlier: Image.Image | None = None

    def __len__(self) -> int:
        """Steps that all masks are there of; the one being added by the worker does not count."""
        return min(map(len, self.masks.values()))

    def add(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Keep what a callback was given after a step.

        Args:
            step: counted down to 1.
            tensors: "latents" and the masks of `MASKS`, each `[1, C, h, w]`.
        """
        self.stop_step = self.stop_step or step
        for name, shares in self.masks.items():
            shares.append(tensors[name][0].float().mean(dim=0).cpu().numpy())
        self.latents.append(tensors["latents"][0].float().cpu())

    def covered(self, name: str) -> list[float]:
        """Part of the image under a mask at each step: positions where it holds in one channel at least, in percent."""
        return [100 * float((share > 0).mean()) for share in self.masks[name]]


class Runner:
    """Runs of one pipeline, one at a time, which those who started them can stop.

    Args:
        pipe: a loaded pipeline.
        worker: the one thread that models run in.
    """

    def __init__(self, pipe: SONAMixin, worker: Worker):
        self.pipe, self._worker = pipe, worker
        self._stopped: dict[str | None, float] = {}

    def stop(self, visitor: str | None) -> None:
        """End all that the visitor has asked for up to now, running or waiting, after the step it is at."""
        self._stopped[visitor] = time.monotonic()
        while len(self._stopped) > VISITORS:
            del self._stopped[next(iter(self._stopped))]

    def stops(self, visitor: str | None, asked: float) -> IsStopped:
        """The question whether the visitor has pressed stop since the time `asked` of the monotonic clock."""
        return lambda: self._stopped.get(visitor, asked) > asked

    def trace(self, source: Image.Image, request: Request, is_stopped: IsStopped) -> Iterator[Trace]:
        """Run the pipeline; gives the growing trace after each step, and at the end with the outlier.

        A run that was stopped ends without an outlier, and without any step if it was so before its turn.

        Args:
            source: at the model's size.
            request: what was asked for.
            is_stopped: asked before each step.

        Raises:
            ValueError, TypeError: the pipeline refuses the request.
        """
        trace = Trace(source, request)
        generator = torch.Generator().manual_seed(request.seed)
        for made in self._run(is_stopped, request, trace, image=source, generator=generator):
            trace.outlier = made[0] if made else None
            yield trace

    def compare(self, source: Image.Image, request: Request, is_stopped: IsStopped) -> dict[str, Image.Image]:
        """The same seed with global guidance instead of regions, and from noise by the OOD prompt alone.

        Both are made in one call. The second is text-to-image with classifier-free guidance: its "source" are latents
        of zeros, noised up to the first step of the schedule. A stop leaves out both.

        Returns:
            An image for each name of `COMPARISONS`, or none.
        """
        prepared = self._worker.submit(self._latents_and_nothing, source, request).result()
        made = list(self._run(is_stopped, request, None, **prepared, strength=None, global_guidance=True))[-1:]
        return dict(zip(COMPARISONS, made[0])) if made and made[0] else {}

    @torch.no_grad()
    def _latents_and_nothing(self, source: Image.Image, request: Request) -> dict:
        """Arguments of a call for the source, with the very noise that a call of its own would give it, and zeros."""
        pipe, first, second = self.pipe, *(torch.Generator().manual_seed(request.seed) for _ in COMPARISONS)
        steps = request.num_inference_steps
        stop_steps = pipe.get_stop_steps(1, request.strength, None, steps, first)
        latents = pipe.encode_image(pipe.preprocess_image(source), pipe.device, first)
        latents = torch.cat([latents, torch.zeros_like(latents)])
        return {"image": latents, "stop_step": [*stop_steps, steps], "generator": [first, second]}

    def over_strengths(self, source: Image.Image, request: Request, is_stopped: IsStopped) -> dict[float, Image.Image]:
        """The same image, labels and seed at each of `STRENGTHS` that is at least one step, made in one call.

        Returns:
            An outlier by strength; none if it was stopped.
        """
        strengths = [strength for strength in STRENGTHS if int(request.num_inference_steps * strength) >= 1]
        several = {
            "image": [source] * len(strengths),
            "strength": strengths,
            "generator": [torch.Generator().manual_seed(request.seed) for _ in strengths],
        }
        made = list(self._run(is_stopped, request, None, **several))[-1:]
        return dict(zip(strengths, made[0])) if made and made[0] else {}

    def decoded(self, latents: Sequence[torch.Tensor]) -> Iterator[Image.Image]:
        """Pictures of latents `[C, h, w]`; a few are decoded together."""
        for start in range(0, len(latents), DECODED):
            yield from self._worker.submit(self._decode, latents[start : start + DECODED]).result()

    @torch.no_grad()
    def _decode(self, latents: Sequence[torch.Tensor]) -> list[Image.Image]:
        return self.pipe.decode(torch.stack(list(latents)).to(self.pipe.device), "pil")[0]

    def _run(
        self, is_stopped: IsStopped, request: Request, trace: Trace | None, **changes: Any
    ) -> Iterator[list[Image.Image] | None]:
        """Let the worker run the pipeline: None after each step, and the images at the end unless it was stopped."""
        said: Queue = Queue()
        is_left = threading.Event()
        arguments = request.arguments() | changes

        def record(pipe: SONAMixin, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
            if trace is not None:
                trace.add(request.num_inference_steps - step, tensors)
            pipe._interrupt = self._worker.is_ending or is_left.is_set() or is_stopped()
            said.put(None)
            return {}

        def run() -> None:
            try:
                if is_left.is_set() or is_stopped():
                    return
                images, *_ = self.pipe(
                    **arguments,
                    return_dict=False,
                    callback_on_step_end=record,
                    callback_on_step_end_tensor_inputs=["latents", *MASKS],
                )
                said.put(None if self.pipe.interrupt else images)
            finally:
                said.put(_END)

        running = self._worker.submit(run)
        try:
            while (last := said.get()) is not _END:
                yield last
        except GeneratorExit:  # whoever looked is gone; the caller must not wait for the step that is being made
            is_left.set()
            raise
        running.result()
