"""How a batch of planned outliers is made: read, encode, denoise, decode, finish, each a stage of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from sona_pipeline.common.files import digest
from sona_pipeline.data.codecs import KeptForm, settled_quality
from sona_pipeline.data.imaging import fit
from sona_pipeline.data.rejects import MAY_PASS
from sona_pipeline.data.shards import Sample
from sona_pipeline.generation.checks import CHECKS, Classifier, Made, bounds_of, run_checks
from sona_pipeline.generation.embeddings import GivenEmbeddings
from sona_pipeline.generation.plan import Batch, Plan, PlannedOutlier
from sona_pipeline.generation.settings import OutputSettings
from sona_pipeline.generation.ways import WAYS
from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin

PASSING = (FileNotFoundError, PermissionError)
"""Errors of images that are no fault of theirs."""
_NO_PIXELS = "the decoded pixels are NaN or infinite"
_ANOTHER = "use another --dtype, such as float32 or bfloat16"


def _nothing() -> torch.Tensor:
    return torch.empty(0)


@dataclass
class Work:
    """A batch on its way through the stages.

    Attributes:
        name: of the batch.
        items: what is planned; images that cannot be read are taken out.
        rejects: a row for each image that no outlier is made of.
        images: sources, at the model's size.
        generators: one an item, on the CPU.
        pixels: sources `[B, C, H, W]` in [-1, 1].
        source_latents, outlier_latents: scaled latents `[B, c, h, w]`; empty, as `pixels` are, until they are made.
        made: what came of each item: its checks, the outlier, and the source's round trip or None.
    """

    name: str
    items: list[PlannedOutlier] = field(default_factory=list)
    rejects: list[dict] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)
    pixels: torch.Tensor = field(default_factory=_nothing)
    source_latents: torch.Tensor = field(default_factory=_nothing)
    outlier_latents: torch.Tensor = field(default_factory=_nothing)
    made: list[tuple[PlannedOutlier, dict, Image.Image, Image.Image | None]] = field(default_factory=list)


class FinishedBatch(NamedTuple):
    """A batch as it is written.

    Attributes:
        name: of the batch.
        samples: its outliers.
        rejects: a row for each image that no outlier is made of.
    """

    name: str
    samples: list[Sample]
    rejects: list[dict]


class OutlierMaker:
    """Makes planned outliers with a pipeline, stage by stage.

    Args:
        pipe: a loaded pipeline.
        plan: what is to be made, and of what.
        form: what the files are; by default PNG of the model's size.
        reconstructions: also give the VAE round trips of the sources.
        classifier: for the checks that one makes; None leaves them out.
        strict: raise for an image that cannot be read or denoised, instead of rejecting it. Errors of the disk are
            raised in any case.
    """

    def __init__(
        self,
        pipe: SONAMixin,
        plan: Plan,
        *,
        form: KeptForm | None = None,
        reconstructions: bool = True,
        classifier: Classifier | None = None,
        strict: bool = False,
    ):
        self.pipe, self.plan, self.settings = pipe, plan, plan.settings
        self.reconstructions, self.classifier, self.strict = reconstructions, classifier, strict
        self.size, self.mode = image_form(pipe, plan.settings.size)
        self.form = form or KeptForm(self.size, self.size)
        self.bounds = bounds_of(plan.settings.reject)
        self.prompts = PromptCache(pipe)
        file = plan.settings.ood_embeddings
        self.given = GivenEmbeddings(pipe, Path(file), plan.settings) if file else None
        self.way = WAYS[plan.settings.way](pipe, plan.settings)

    def read(self, batch: Batch) -> Work:
        """Decode the images of a batch and bring them to the model's size.

        Without torch, whose threads would take the cores from those of the UNet when this runs beside it.
        """
        work = Work(batch.name)
        for item in map(self.plan.__getitem__, batch.indices):
            try:
                image = self.plan.images.image(item.index)
                work.images.append(fit(image, self.size, self.mode, self.settings.resize_mode))
                work.items.append(item)
            except (OSError, ValueError) as error:
                if self.strict or getattr(error, "errno", None):
                    raise
                work.rejects.append(self._reject(item, str(error), isinstance(error, PASSING)))
        return work

    def encode(self, work: Work) -> Work:
        """Sources to latents; the first draw of each image's generator."""
        if work.items:
            work.pixels = self.pipe.preprocess_image(work.images)
            work.images = []
            work.generators = [torch.Generator().manual_seed(item.seed) for item in work.items]
            work.source_latents = self._encoded(work.pixels, work.generators)
        return work

    def denoise(self, work: Work, steps: int | None = None) -> Work:
        """Latents of sources to latents of outliers; in `steps` of SONA instead of as planned.

        Images whose latents become NaN are found by making each of the batch by itself, and rejected.

        Raises:
            FloatingPointError: that happens to a whole batch, or, when strict, to an image.
        """
        if work.items:
            try:
                if steps:
                    work.outlier_latents = self.denoised(
                        work.items, work.source_latents, work.generators, stop_step=steps
                    )
                else:
                    self._make(work)
            except FloatingPointError:
                if self.strict:
                    raise
                self._denoise_singly(work)
        return work

    @torch.no_grad()
    def _make(self, work: Work) -> None:
        work.outlier_latents = self.way(self, work)
        if not work.outlier_latents.isfinite().all():
            raise FloatingPointError(f"latents become NaN or infinite in {self.pipe.denoiser.dtype}: {_ANOTHER}")

    def _denoise_singly(self, work: Work) -> None:
        found: dict[int, Work] = {}
        errors: list[FloatingPointError] = []
        for k, item in enumerate(work.items):
            pixels, generators = work.pixels[k : k + 1], [torch.Generator().manual_seed(item.seed)]
            latents = self._encoded(pixels, generators)
            one = Work(work.name, [item], generators=generators, pixels=pixels, source_latents=latents)
            try:
                self._make(one)
                found[k] = one
            except FloatingPointError as error:
                errors.append(error)
                work.rejects.append(self._reject(item, str(error), may_pass=True))
        if not found and len(work.items) > 1:
            raise errors[-1]
        work.items, kept = [one.items[0] for one in found.values()], list(found)
        work.pixels, work.source_latents = work.pixels[kept], work.source_latents[kept]
        work.outlier_latents = torch.cat([one.outlier_latents for one in found.values()]) if found else _nothing()

    @torch.no_grad()
    def _encoded(self, pixels: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        """Latents; all NaN if those of an image are, so that the images are then made one by one."""
        try:
            return self.pipe.encode_image(pixels, self.pipe.device, generators)
        except FloatingPointError:
            shape = self.pipe.latent_shape(pixels)
            return torch.full(shape, math.nan, dtype=self.pipe.latent_dtype, device=self.pipe.device)

    def prompts_of(self, items: Sequence[PlannedOutlier]) -> tuple[list[str], list[str]]:
        """ID and OOD prompt of every item."""
        names, settings = [self.plan.images.label_name(item.index) for item in items], self.settings
        ood_prompts = [settings.ood_prompt_of(item.ood_label, name) for item, name in zip(items, names)]
        return [settings.id_prompt_of(name) for name in names], ood_prompts

    def meanings_of(self, items: Sequence[PlannedOutlier]) -> Conditions:
        """Conditions `[B, ...]` of what the outliers shall mean: of a prompt, between two, or given."""
        if self.given:
            return self.given([item.ood_label for item in items])
        names = [self.plan.images.label_name(item.index) for item in items]
        texts = [self.settings.ood_prompt_of(m, name) for item, name in zip(items, names) for m in item.meanings]
        counts = [len(item.meanings) for item in items]
        return {name: _between(value.split(counts)) for name, value in self.prompts(texts).items()}

    def denoised(
        self, items: Sequence[PlannedOutlier], latents: torch.Tensor, generators: list[torch.Generator], **options: Any
    ) -> torch.Tensor:
        """Latents of outliers of the source latents; `options` of the pipeline's call go before what is planned.

        Raises:
            FloatingPointError: latents are, or become, NaN or infinite.
        """
        if not latents.isfinite().all():
            raise FloatingPointError(f"the VAE makes NaN or infinite latents in {self.pipe.vae.dtype}: {_ANOTHER}")
        planned: dict[str, Any] = {
            "id_prompt_embeds": self.prompts(self.prompts_of(items)[0]),
            "ood_prompt_embeds": self.meanings_of(items),
            "uncond_prompt_embeds": self.prompts([""]),
            "stop_step": [item.stop_step for item in items],
            "num_inference_steps": self.settings.num_inference_steps,
            "guidance_scale": self.settings.guidance_scale,
            "mask_threshold": self.settings.mask_threshold,
            "mask_granularity": self.settings.mask_granularity,
        }
        planned |= {"generator": generators, "output_type": "latent", "return_dict": False}
        return self.pipe(latents, **planned | options)[0]

    @torch.no_grad()
    def decode(self, work: Work) -> Work:
        """Latents to images, with their checks; outliers that break a bound are rejected.

        Raises:
            FloatingPointError: pixels of a whole batch are NaN or infinite, or, when strict, those of an image.
        """
        if not work.items:
            return work
        outliers, flags = self._decoded(work.outlier_latents, work.pixels)
        is_finite = _are_finite(outliers)
        round_trips, source_flags = None, None
        if self.reconstructions:
            round_trips, source_flags = self._decoded(work.source_latents, work.pixels)
            is_finite = [*map(min, is_finite, _are_finite(round_trips))]
        if not all(is_finite) and (self.strict or (not any(is_finite) and len(is_finite) > 1)):
            raise FloatingPointError(f"{_NO_PIXELS} in {self.pipe.vae.dtype}: {_ANOTHER}")
        sources = (work.pixels / 2 + 0.5).to(outliers.device)
        results = run_checks(Made(sources, outliers.float(), work.source_latents, work.outlier_latents))
        pictures = pictures_of(outliers)
        if self.classifier:
            classes = [self.plan.images.label_name(item.index) for item in work.items]
            for row, checks in zip(results, self.classifier(pictures, classes)):
                row |= {name: round(value, 5) for name, value in checks.items()}
        others = pictures_of(round_trips) if round_trips is not None else [None] * len(pictures)
        for k, (item, row) in enumerate(zip(work.items, results)):
            reasons = [reason for bound in self.bounds if (reason := bound.reason(row))]
            strange = [f"{name} is not finite" for name in CHECKS if not math.isfinite(float(row[name]))]
            reasons += strange if is_finite[k] else [_NO_PIXELS]
            if (flags and flags[k]) or (source_flags and source_flags[k]):
                reasons.append("flagged by the safety checker")
            if reasons:
                work.rejects.append(self._reject(item, ", ".join(reasons), bool(strange) or not is_finite[k]))
            else:
                work.made.append((item, row, pictures[k], others[k]))
        work.pixels = work.source_latents = work.outlier_latents = _nothing()
        return work

    def _decoded(self, latents: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        """Pixels in [0, 1] and the safety checker's flags; NaN, like `pixels` in shape, where the pipeline has none."""
        try:
            return self.pipe.decode(latents, "pt")
        except FloatingPointError:
            if len(latents) == 1:
                return torch.full_like(pixels[:1], math.nan, device=latents.device, dtype=latents.dtype), None
            parts = [self._decoded(one[None], pixels) for one in latents]
            return torch.cat([part for part, _ in parts]), [bool(flags and flags[0]) for _, flags in parts]

    def finish(self, work: Work) -> FinishedBatch:
        """The outliers of a batch as files, with their rows of the metadata table."""
        return FinishedBatch(work.name, [self._sample(*one) for one in work.made], work.rejects)

    def _sample(self, item: PlannedOutlier, checks: dict, outlier: Image.Image, other: Image.Image | None) -> Sample:
        content, class_name = self.form.encoded(outlier), self.plan.images.label_name(item.index)
        row = {
            "file_name": item.file_name,
            "source_key": self.plan.images.keys[item.index],
            "source_class": class_name,
            "id_label": self.settings.id_label(class_name),
            "ood_label": item.ood_label if self.way.uses_label else "",
            "stop_step": item.stop_step,
            "seed": item.seed,
            **checks,
            "sha256": digest(content),
        }
        return Sample(row, content, self.form.encoded(other) if other else None)

    def _reject(self, item: PlannedOutlier, reason: str, may_pass: bool = False) -> dict:
        row = {"file_name": item.file_name, "source_key": self.plan.images.keys[item.index], "reason": reason}
        return row | ({MAY_PASS: True} if may_pass else {})


class PromptCache:
    """What prompts become for the denoiser, each text encoded once as long as there is room.

    Args:
        pipe: a loaded pipeline.
        room: how many texts to keep; those not used for longest go first.
    """

    def __init__(self, pipe: SONAMixin, room: int = 4096):
        self.pipe, self.room = pipe, room
        self._kept: dict[str, Conditions] = {}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Conditions:
        """Conditions `[B, ...]` of `texts`, in their order."""
        if missing := [text for text in dict.fromkeys(texts) if text not in self._kept]:
            encoded = self.pipe.encode_texts(missing, self.pipe.device)
            for k, text in enumerate(missing):
                self._kept[text] = {name: value[k] for name, value in encoded.items()}
        rows = [self._kept[text] for text in texts]
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        self._kept |= {text: self._kept.pop(text) for text in dict.fromkeys(texts)}
        for text in list(self._kept)[: max(0, len(self._kept) - self.room)]:
            del self._kept[text]
        return found


def image_form(pipe: SONAMixin, size: int | None) -> tuple[int, str]:
    """Side in pixels, and mode, of the images that a pipeline takes; the model's own side for None."""
    return size or pipe.image_size, "L" if is_grey_model(pipe) else "RGB"


def kept_form(size: int, writing: OutputSettings) -> KeptForm:
    """How outliers of a model with images of `size` pixels are kept.

    Raises:
        ValueError: Pillow lacks the codec, it has no quality, or images would be scaled up.
    """
    if writing.save_size and writing.save_size > size:
        raise ValueError(
            f"the images would be kept at {writing.save_size} px, but the model makes them at {size} px: give at most"
            " that, since what is scaled up holds no more"
        )
    return KeptForm(size, writing.save_size or size, writing.codec, settled_quality(writing.codec, writing.quality))


def is_grey_model(pipe: SONAMixin) -> bool:
    """Whether the pipeline makes grey images."""
    return pipe.image_channels == 1


def _between(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of each part, and of lengths and masks the most."""
    return torch.stack([part.mean(dim=0) if part.is_floating_point() else part.amax(dim=0) for part in parts])


def _are_finite(pixels: torch.Tensor) -> list[bool]:
    return pixels.isfinite().flatten(1).all(dim=1).tolist()


def pictures_of(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels `[B, C, H, W]` in [0, 1] as images of 8 bits."""
    return [to_pil_image(one) for one in (pixels.float() * 255).round().to(torch.uint8).cpu()]
