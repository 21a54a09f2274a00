"""Texts of the cards that repositories on the Hub have: of pipelines, outlier sets and detectors."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from sona_pipeline.detection.settings import ONNX_FILE
from sona_pipeline.evaluation.report import GROUPS, METRICS, SPECTRA, Run, plain, summary, with_spread
from sona_pipeline.generation.inspection import QUANTILES, Inspection
from sona_pipeline.generation.ways import WAYS
from sona_pipeline.training.methods import METHODS

if TYPE_CHECKING:
    import torch

    from sona_pipeline.detection.detector import Detector
    from sona_pipeline.pipelines.core import SONAMixin

TITLE = "Diffusion based Semantic Outlier Generation via Nuisance Awareness for Out-of-Distribution Detection"
PAPER = f"*{TITLE}* (Yoon et al., AAAI 2025)"
CITATION = f"""```bibtex
@inproceedings{{yoon2025sona,
  title     = {{{TITLE}}},
  author    = {{Yoon, Suhee and Yoon, Sanghyu and Lee, Hankook and Sim, Ye Seul and Choi, Sungik and Lee, Kyungeun and
               Cho, Hye-Seung and Lim, Woohyung}},
  booktitle = {{Proceedings of the AAAI Conference on Artificial Intelligence}},
  year      = {{2025}}
}}
```"""
METHOD = textwrap.fill(
    f"""The method is SONA's, of {PAPER}, in an independent implementation. Each image is
noised part-way, up to a stop step of its own, and denoised under a guidance that works region by region. At every step
the model sees the image with three prompts: an empty one, one that says what the image shows (ID), and one that says
what the outlier shall mean (OOD). Where the ID prompt matters most, its meaning is taken away; where it matters least,
what surrounds the object is kept; and the OOD prompt's meaning is added where that matters most, outside what is
kept.""",
    120,
    break_on_hyphens=False,
)
PIPELINE_LIMITS = """\
- It works with {title} and checkpoints built like them, and only with things that their model knows by name.
- An outlier is not checked. At a low strength it can still show its source class; at a high one, little of the source
  is left. Look at some before you train on them, and leave out OOD labels that mean one of your classes.
- Outliers carry what the diffusion model has learned, its biases included. They are made to train and to test
  detectors, not to be taken for photographs."""
OUTLIER_LIMITS = """\
- `ood_label` is what the model was asked for, not what somebody saw in the image. Outliers of an early stop step can
  still show their source class, and some show nothing that has a name.
- They carry what the diffusion model has learned, its biases included, and the traces of its autoencoder."""
RECONSTRUCTION_LIMIT = """
- `reconstruction` shows the ID images nearly as they are: what restricts their use restricts that of this column."""
DETECTOR_LIMITS = """\
- It knows the classes above and nothing else. What it accepts may still be OOD, and what it flags may be ID: see the
  rates below where they were measured, and measure them on your own images.
- The threshold holds for images like those that it was chosen by. Another camera, format or size shifts the scores:
  calibrate again (`sona calibrate`).
- Like any detector of this kind it can be misled on purpose. Do not let it decide alone where people can come to
  harm."""
_NOTES = """
## The weights

{notes}
"""
TAGS = ["out-of-distribution-detection", "outlier-exposure", "sona"]
WIDTH = 120
LONG = 40
"""Names that a card lists at most."""

COLUMNS = {
    "image": "the outlier",
    "reconstruction": "its source after the round trip through the model's autoencoder; it still shows the source",
    "file_name": "name of the outlier, by source class",
    "source_key": "which image of the ID data it comes from",
    "source_class": "class of that image",
    "id_label": "what prompts call that class",
    "ood_label": "what the outlier was asked to mean",
    "stop_step": "how far the source was noised, from 1 to the number of steps",
    "seed": "of the outlier's noise",
    "latent_distance": "root mean square of the change in the autoencoder's latents; 0 is unchanged",
    "contrast": "standard deviation of the pixels, at most 0.5; 0 is empty",
    "saturation": "share of black and white pixels beyond the source's",
    "source_confidence": "probability that a classifier gives the source class",
    "confidence": "probability that a classifier gives the class that it takes the outlier for",
    "id_quantile": "share of ID validation images that have a lower OOD score by a detector",
    "fingerprint": "a difference hash; images that look nearly the same mostly have the same",
    "sha256": "of the outlier's file",
}
"""What the columns of an outlier set are."""


def pipeline_card(
    repo_id: str,
    model: str,
    family: type[SONAMixin],
    *,
    pointer: bool,
    licence: str | None,
    notes: str = "",
    runs: Sequence[Run] = (),
) -> ModelCard:
    """The card of a repository with the pipeline's code, with or without weights.

    Args:
        repo_id: `owner/name`.
        model: what the weights are, or are to be: a Hub id, or another name.
        family: the pipeline.
        pointer: there is code only.
        licence: of the weights, by the Hub's name; None if it is not known.
        notes: a description of the weights in Markdown, that begins with a heading.
        runs: measured results of detectors that were trained on outliers made with these weights.
    """
    on_hub = "/" in model
    base = f"[{model}](https://huggingface.co/{model})" if on_hub else f"`{model}`, a model of its publisher's"
    base = "a latent diffusion model in miniature, described below" if notes else base
    if pointer:
        content = f"It holds code only, `{family.__name__}` in `pipeline.py`, to be used with the weights of {base}."
        loading = f'\n    "{model}", custom_pipeline="{repo_id}", trust_remote_code=True\n'
    else:
        content = f"It holds the code, `{family.__name__}` in `pipeline.py`, and the weights of {base}."
        loading = f'"{repo_id}", trust_remote_code=True'
    described = _NOTES.format(notes=re.sub("^# (.*)", r"\1.", notes)) if notes else ""
    weights = f"The weights are under {licence}." if licence else f"The weights keep the licence of `{model}`."
    text = f"""# {repo_id.partition("/")[2]}

A pipeline of diffusers that turns labelled images into *semantic outliers*: pictures that look nearly like the image
they come from, but mean something else. A classifier that is trained to be unsure of them learns to say "I have never
seen this" of things that only look familiar (near-OOD detection). {content}

{_pipeline_use(loading, family.__name__, *(("shirt", "bag") if notes else ("barn", "lighthouse")))}

## Method

{METHOD} The share of a region is `mask_threshold`
(0.2), the strength of the guidance `guidance_scale` (10).
{described}
## Limits

{PIPELINE_LIMITS.format(title=family.title)}

## Results

{results_text(runs, "Of detectors trained with and without such outliers, by method.", with_methods=True)}

## Licence

The code is under Apache-2.0. {weights}

## Citation

{CITATION}
"""
    data = ModelCardData(
        base_model=model if on_hub else None,
        library_name="diffusers",
        license="apache-2.0" if pointer else licence,
        pipeline_tag="image-to-image",
        tags=[*TAGS, _tag(family)],
    )
    return ModelCard(_with_data(data, text))


def _pipeline_use(loading: str, kind: str, id_label: str, ood_label: str) -> str:
    return f"""## Use

```python
from diffusers import DiffusionPipeline
from diffusers.utils import load_image

pipe = DiffusionPipeline.from_pretrained({loading})
side = pipe.image_size
image = load_image("{id_label}.jpg").resize((side, side))
output = pipe(image, id_prompt="a photo of a {id_label}", ood_prompt="a photo of a {ood_label}", strength=0.7)
output.images[0].save("outlier.png")
```

`trust_remote_code=True` lets diffusers run this repository's `pipeline.py`: read it first. Without `strength`, the stop
step is drawn at random for each image, as in the paper. All arguments are described in the docstring of
`{kind}.__call__`."""


def _tag(family: type[SONAMixin]) -> str:
    """The name of a family's file as the Hub writes it."""
    return family.__module__.rpartition(".")[2].replace("_", "-")


def blocks_card(repo_id: str, family: type[SONAMixin], model: str | None) -> ModelCard:
    """The card of a repository with the blocks of a family.

    Args:
        repo_id: `owner/name`.
        family: the pipeline that they work through.
        model: Hub id of the weights that are loaded with them; None if there are none.
    """
    weights = f"those of [{model}](https://huggingface.co/{model})" if model else "those of a model that you name"
    licence = f"the licence of `{model}`" if model else "their own licence"
    text = f"""# {repo_id.partition("/")[2]}

Blocks of modular diffusers that turn labelled images into *semantic outliers*: pictures that look nearly like the image
they come from, but mean something else. A classifier that is trained to be unsure of them learns to say "I have never
seen this" of things that only look familiar (near-OOD detection). There is code only, `block.py`; the weights are
{weights}: {family.title}.

{_blocks_use(repo_id, model)}

## Method

{METHOD} Images of one call share a schedule, and so a stop step.

## Licence

The code is under Apache-2.0. The weights keep {licence}.

## Citation

{CITATION}
"""
    data = ModelCardData(
        base_model=model,
        library_name="diffusers",
        license="apache-2.0",
        pipeline_tag="image-to-image",
        tags=[*TAGS, "modular-diffusers", _tag(family)],
    )
    return ModelCard(_with_data(data, text))


def _blocks_use(repo_id: str, model: str | None) -> str:
    kind, loading = "ModularPipeline", f'pipe = ModularPipeline.from_pretrained("{repo_id}", trust_remote_code=True)'
    if model is None:
        kind = "ModularPipelineBlocks"
        loading = f"""blocks = ModularPipelineBlocks.from_pretrained("{repo_id}", trust_remote_code=True)
pipe = blocks.init_pipeline("MODEL")  # a Hub id or a folder"""
    return f"""## Use

```python
import torch
from diffusers import {kind}
from diffusers.utils import load_image

{loading}
pipe.load_components(dtype=torch.float16)
pipe.to("cuda")
image = load_image("barn.jpg").resize((512, 512))  # or the size of the images that the model was made for
prompts = {{"id_prompt": "a photo of a barn", "ood_prompt": "a photo of a lighthouse"}}
pipe(image=image, **prompts, strength=0.7, output="images")[0].save("outlier.png")
```

`trust_remote_code=True` lets diffusers run this repository's `block.py`: read it first. Without `strength` or
`stop_step`, the stop step is drawn at random. The guidance has its settings in the guider, and
`pipe.update_components(guider=pipe.guider.new(guidance_scale=7.5))` changes them.

A block that is put into the loop after "guide" sees the predictions, the masks and the guidance of every step:

```python
from diffusers import ModularPipelineBlocks

class Watch(ModularPipelineBlocks):
    def __call__(self, components, state, i, t):
        print(i, int(t), state.id_semantic_mask.sum().item())
        return components, state

blocks = pipe.blocks
blocks.sub_blocks["denoise"].sub_blocks.insert("watch", Watch(), 2)
watched = blocks.init_pipeline()
watched.update_components(**pipe.components)
watched(image=image, **prompts, strength=0.7)
```"""


@dataclass(frozen=True)
class OutlierFacts:
    """What the card of an outlier set says of its images, besides what `inspection.Inspection` counts.

    Attributes:
        columns: of the table, in their order.
        size: width and height of the images in pixels.
        is_grey: whether they have no colours.
    """

    columns: Sequence[str]
    size: tuple[int, int]
    is_grey: bool


def outlier_card(
    repo_id: str, found: Inspection, facts: OutlierFacts, *, id_set: str | None, near_ood: bool, licence: str | None
) -> DatasetCard:
    """The card of an outlier set, as training data or as a near-OOD test set.

    Args:
        repo_id: `owner/name`.
        found: counts and settings of the set.
        facts: columns and form of the images.
        id_set: what the ID images are, as a Hub id or in words.
        near_ood: whether it is a test set.
        licence: by the Hub's name, or None.
    """
    split, count = "test" if near_ood else "train", len(found.rows)
    sources = f"[{id_set}](https://huggingface.co/datasets/{id_set})" if _is_id(id_set) else plain(id_set or "")
    data = _outlier_data(repo_id, split, count, id_set, licence)
    text = f"""# {repo_id.partition("/")[2]}

{_outlier_opening(found, sources, near_ood)}

| | |
|---|---|
| images | {count:,}, {facts.size[0]} x {facts.size[1]} pixels, {"grey" if facts.is_grey else "colour"} |
| files | {_files(found.settings)} |
| split | `{split}` |
| source classes | {_listed(found.classes)} |
| OOD labels | {_listed(found.labels)} |

{_near_ood_use(repo_id, facts, sources) if near_ood else _training_use(repo_id, facts)}

## Columns

{_table(["column", ""], ([f"`{name}`", COLUMNS.get(name, "")] for name in facts.columns))}

## How they were made

{_way_text(found.settings)}

{_table(["setting", "value"], _settings_rows(found.settings))}

`settings.json` has all settings, with the versions of the packages.

## Quality checks

Measured on all {count:,} outliers (`sona inspect` prints the same); a column gives the value that this share of them is
at or below.

{_checks_table(found)}

{_left_out(found)}

## Limits

{OUTLIER_LIMITS}{RECONSTRUCTION_LIMIT if "reconstruction" in facts.columns else ""}

## Licence

{_licence_text(licence, "set", "the ID images and of the diffusion model")}

## Citation

{CITATION}
"""
    return DatasetCard(_with_data(data, text))


def _outlier_opening(found: Inspection, sources: str, near_ood: bool) -> str:
    count, origin = len(found.rows), f" of {sources}" if sources else ""
    purpose = "a hard near-OOD test set" if near_ood else "training images for out-of-distribution detectors"
    if (way := found.settings.get("way", "sona")) == "sona":
        return f"""{count:,} semantic outliers, made as {purpose}. Each comes from one image{origin} and looks nearly
like it, but was asked to mean something that is none of the {len(found.classes)} classes there."""
    return f"""{count:,} outliers, made as {purpose} by `sona generate --way {way}`. Each was made for one
image{origin}, of {len(found.classes)} classes."""


def _files(settings: Mapping) -> str:
    """What the image files of a set are; version 0.1.0 wrote PNG of the model's size."""
    names = {"webp": "WebP without loss", "jpeg": f"JPEG of quality {settings.get('quality')}"}
    found = names.get(settings.get("codec", "png"), "PNG")
    if settings.get("save_size"):
        found += f", scaled down from {settings['notes']['model_size']} pixels by Lanczos' filter"
    return f"{found}; round trips, where there are any, alike"


def _outlier_data(repo_id: str, split: str, count: int, id_set: str | None, licence: str | None) -> DatasetCardData:
    return DatasetCardData(
        configs=[{"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*"}]}],
        license=licence,
        pretty_name=repo_id.partition("/")[2],
        size_categories=_size_category(count),
        source_datasets=[f"extended|{id_set}"] if _is_id(id_set) else None,
        tags=[*TAGS, "near-ood" if split == "test" else "synthetic"],
        task_categories=["image-classification"],
    )


def _training_use(repo_id: str, facts: OutlierFacts) -> str:
    trips = ""
    if "reconstruction" in facts.columns:
        trips = """
`reconstruction` is an *ID* image: the source as the autoencoder alone gives it back. Train on it with the class of its
source, or the detector may learn the traces of the autoencoder instead of meanings.
"""
    return f"""## Use

```python
from datasets import load_dataset

outliers = load_dataset("{repo_id}", split="train")
```

Train a classifier on the ID images, and to be unsure of the outliers (outlier exposure). `source_key` leads from an
outlier to its ID image.
{trips}""".rstrip()


def _near_ood_use(repo_id: str, facts: OutlierFacts, sources: str) -> str:
    trips, name = "The ID images themselves are not in this set.", repo_id.partition("/")[2]
    if "reconstruction" in facts.columns:
        trips += """ `reconstruction` shows each source as the
  autoencoder alone gives it back: these count as ID, never as OOD. Scored as a second ID set, they tell whether a
  detector sees the meaning or the traces of the autoencoder."""
    return f"""## Use as a near-OOD test set

It belongs to the ID set {sources}, and tests detectors of the source classes above and no others.

```python
from datasets import load_dataset

near_ood = load_dataset("{repo_id}", split="test")
```

- **Labels.** Every `image` counts as OOD. `source_class` and `ood_label` are for breaking results down, and are no
  targets.
- **ID side.** The test images of the ID set. {trips}
- **Protocol.** Train, choose and calibrate the detector without this set; neither its images nor their sources
  (`source_key`) may have been trained on. Score every image once, in the detector's own preprocessing.
- **Report** AUROC in percent between the ID test images and all {repo_id.partition("/")[2]} images, with OOD as the
  positive class, and FPR@95 (the share of ID images flagged when 95 % of the OOD images are), as mean and standard
  deviation over training seeds. Beside them, report AUROC by `stop_step`: outliers of the first steps have hardly
  changed. If you leave any out, say which.

With the package `sona-pipeline`, in one command, which takes the ID test images from a folder with a sub-folder a class
(or from a data set on the Hub):

```sh
sona evaluate --detector DETECTOR --id ID_TEST_IMAGES --near {name}={repo_id} --output results
```"""


def detector_card(
    repo_id: str,
    detector: Detector,
    *,
    training: Mapping | None = None,
    runs: Sequence[Run] = (),
    licence: str | None = None,
    onnx: bool = False,
) -> ModelCard:
    """The card of a detector.

    Args:
        repo_id: `owner/name`.
        detector: that is described.
        training: settings that it was trained with; None if they are not known.
        runs: its measured results, of this very detector.
        licence: by the Hub's name, or None.
        onnx: whether the ONNX file lies beside it.
    """
    name = repo_id.partition("/")[2]
    data = ModelCardData(
        eval_results=_eval_results(runs, detector.score) or None,
        library_name="sona-pipeline",
        license=licence,
        metrics=["accuracy", "roc_auc"] if runs else None,
        model_name=name,
        pipeline_tag="image-classification",
        tags=TAGS,
    )
    text = f"""# {name}

An image classifier of {len(detector.classes)} classes that also says of an image how unfamiliar it is, and whether it
has seen the like.

{_detector_use(repo_id)}{_onnx_use(repo_id, detector) if onnx else ""}

## What it is

{_table(["", ""], _detector_rows(detector))}

{_threshold_text(detector, training)}

{_training_text(training)}

## Limits

{DETECTOR_LIMITS}

## Results

{results_text(runs, "Of this very detector, on the test sets that it was evaluated with.", with_methods=False)}

## Licence

{_licence_text(licence, "detector", "its training images")}

## Citation

The method is that of {PAPER}, in an independent implementation.

{CITATION}
"""
    return ModelCard(_with_data(data, text))


def _detector_use(repo_id: str) -> str:
    return f"""## Use

With the package `sona-pipeline`:

```python
from sona_pipeline import load_detector

detector = load_detector("{repo_id}")
said = detector("photo.jpg")  # a path or a PIL image; a list of them gives a list
print(said.label, said.confidence, said.energy, said.is_ood)
```

or `sona score --detector {repo_id} photo.jpg`. The weights are safetensors, everything else is in `config.json`."""


def _onnx_use(repo_id: str, detector: Detector) -> str:
    has_verdict, classes, side = detector.threshold is not None, len(detector.classes), detector.image_size
    verdict, shown = (", and `is_ood`, bool `[N]`", "is_ood") if has_verdict else ("", "score")
    return f"""

Without that package, by its file `{ONNX_FILE}`. It takes `pixels`, uint8 `[N, 3, {side}, {side}]`, normalizes them
itself, and gives `logits` and `probabilities` `[N, {classes}]` and `score` `[N]`, float32{verdict}. Its metadata say
how an image becomes pixels, every value as JSON:

```python
import json

import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(hf_hub_download("{repo_id}", "{ONNX_FILE}"))
about = {{key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}}
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
image = ImageOps.fit(image, 2 * (about["resize"],), Image.Resampling.LANCZOS)
edge, side = (about["resize"] - about["image_size"]) // 2, about["image_size"]
pixels = np.asarray(image.crop((edge, edge, edge + side, edge + side))).transpose(2, 0, 1)[None]
names = [output.name for output in session.get_outputs()]
found = dict(zip(names, session.run(None, {{"pixels": pixels}})))
print(about["classes"][found["probabilities"][0].argmax()], found["{shown}"][0])
```"""


def results_text(runs: Sequence[Run], of_what: str, *, with_methods: bool) -> str:
    """Measured results as a Markdown table, a row a test set, method and score; or that none are given.

    Args:
        runs: of `sona evaluate`; those of one method are its seeds.
        of_what: the sentence that the text begins with.
        with_methods: whether the table says which method a row is of.
    """
    if not runs:
        return "None are given: this card states measured results only."
    found = summary(runs)
    cells: dict[tuple, dict[str, str]] = {}
    for row in found[found["metric"].isin([*METRICS, "flagged"])].itertuples():
        key = (row.spectrum, row.group, row.set, row.method, row.score)
        cells.setdefault(key, {})[row.metric] = with_spread(row.mean, row.std)
    order = [*SPECTRA], [*GROUPS]
    rows = []
    for spectrum, group, name, method, score in sorted(
        cells, key=lambda k: (order[0].index(k[0]), order[1].index(k[1]))
    ):
        title = GROUPS[group] if group == "id" else f"{GROUPS[group]} {name}"
        title += "" if spectrum == "standard" else ", full spectrum"
        numbers = cells[spectrum, group, name, method, score]
        shown = [numbers.get(metric, "") for metric in (*METRICS, "flagged")]
        rows.append([plain(title), plain(method), plain(score), *shown])
    head = ["test set", "method", "score", *METRICS.values(), "flagged"]
    if not with_methods:
        head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    spread = f" Mean ± standard deviation over {found['n'].max()} seeds." if found["n"].max() > 1 else ""
    return f"""{of_what} In percent.{spread} OOD is the positive class: FPR@95 is the share of ID
images flagged when 95 % of the OOD images are. "Flagged" is the share of ID images above the detector's threshold.

{_table(head, rows)}

Measured by `sona evaluate` (package `sona-pipeline`)."""


def _eval_results(runs: Sequence[Run], score: str) -> list[EvalResult]:
    """The results by one score, for the metadata that the Hub shows beside a model."""
    if not runs:
        return []
    found = summary(runs)
    names = {"accuracy": "Accuracy", "auroc": "AUROC", "fpr95": "FPR@95"}
    rows = found[(found["score"] == score) & found["metric"].isin(list(names)) & (found["spectrum"] == "standard")]
    rows = rows[rows["set"] != "mean"]
    return [
        EvalResult(
            task_type="image-classification",
            task_name="ID classification" if row.metric == "accuracy" else "out-of-distribution detection",
            dataset_type=row.set,
            dataset_name=GROUPS[row.group] if row.group == "id" else f"{GROUPS[row.group]} {row.set}",
            metric_type={"accuracy": "accuracy", "auroc": "roc_auc"}.get(row.metric, row.metric),
            metric_name=f"{names[row.metric]} in %",
            metric_value=round(row.mean, 2),
        )
        for row in rows.itertuples()
    ]


def _detector_rows(detector: Detector) -> list[list[str]]:
    settings, side = detector.settings, detector.image_size
    scaled = round(side / detector.crop_pct)
    crop = "" if scaled == side else f", of which the middle {side} x {side} are taken"
    mean, std = (", ".join(f"{value:.3f}" for value in settings[key]) for key in ("mean", "std"))
    return [
        ["classes", _listed(detector.classes)],
        ["network", f"`{settings['network']}`"],
        ["preprocessing", f"turned upright, RGB, middle square scaled to {scaled} x {scaled} pixels (Lanczos){crop}"],
        ["normalization", f"pixels in [0, 1], mean {mean}, standard deviation {std}"],
        ["score", f"`{detector.score}` at temperature {detector.temperature:g}; higher is less familiar"],
        *([["neighbours", _neighbours_text(detector.neighbours)]] if detector.neighbours is not None else []),
    ]


def _neighbours_text(neighbours: torch.Tensor) -> str:
    count, width = neighbours.shape
    return f"{width} features each of {count} training images, beside the weights, for the score `energy+knn`"


def _threshold_text(detector: Detector, training: Mapping | None) -> str:
    if detector.threshold is None:
        return "It has no threshold, so that `is_ood` is None: choose one by `Detector.calibrated`."
    rate = detector.id_rate or (training and training.get("id_rate"))
    how = f"it was chosen so that {100 * rate:g} % of the ID validation images lie at or below it" if rate else ""
    how = how or "which share of ID images it was chosen to accept is not recorded"
    own = [one for one in detector.class_thresholds or [] if one is not None]
    more = f" What is taken for {len(own)} of the classes has thresholds of their own, in `config.json`." if own else ""
    return f"An image with a score above the threshold {detector.threshold:.4g} is called OOD; {how}.{more}"


def _way_text(settings: Mapping) -> str:
    way = settings.get("way", "sona")
    if way == "sona":
        return METHOD
    first, *_ = inspect.cleandoc(WAYS[way].__doc__ or "").splitlines()
    return textwrap.fill(
        f"They are not SONA's, but made to be compared with its outliers, by `sona generate --way {way}`: {first}", 120
    )


_METHOD_NAMES = {"oe": "outlier exposure", "energy": "energy margins", "mixoe": "MixOE"}


def _training_text(training: Mapping | None) -> str:
    if training is None:
        return "How it was trained is not recorded."
    method = training["method"]
    exposed = training["outliers"] or method not in METHODS or not METHODS[method].needs_outliers
    how = f"by {_METHOD_NAMES.get(method, method.upper())}" if exposed else "by cross-entropy, without outliers"
    how += " with mutual information" if training["mi_weight"] else ""
    start = "from pretrained weights" if training["pretrained"] else "from scratch"
    return (
        f"Trained {how}, {start}, {training['epochs']} epochs in batches of {training['batch_size']}, seed"
        f" {training['seed']}; `training.json` has all settings."
    )


def _settings_rows(settings: Mapping) -> Iterable[list[str]]:
    names = {
        "model": "diffusion model",
        "model_revision": "its revision or fingerprint",
        "pipeline": "pipeline of this package",
        "scheduler": "scheduler",
        "num_inference_steps": "steps of the full schedule",
        "guidance_scale": "guidance scale s",
        "mask_threshold": "share of the latents in a region",
        "mask_granularity": "share taken over",
        "prompt": "prompt",
        "ood_prompt": "OOD prompt, if another one",
        "way": "way of making them",
        "blend": "blend of meanings",
        "label_choice": "choice of the OOD label",
        "resize_mode": "how sources came to the size",
        "reject": "left out where",
        "classifier": "classifier that made checks",
        "seed": "seed",
    }
    noted = {"pipeline": settings.get("notes", {}).get("pipeline")}
    for key, title in names.items():
        if (value := (noted | dict(settings)).get(key)) not in (None, [], "", "unknown"):
            text = plain(", ".join(value) if isinstance(value, list) else str(value))
            is_local = key == "model" and "/" not in value
            yield [title, f"{text} (a folder, not on the Hub)" if is_local else text]


def _checks_table(found: Inspection) -> str:
    rows = (
        [f"`{name}`", *(f"{value:.3g}" for value in np.percentile(values, QUANTILES))]
        for name, values in found.checks.items()
    )
    return _table(["check", *(f"{share} %" for share in QUANTILES)], rows)


def _left_out(found: Inspection) -> str:
    text = f"{found.duplicates:,} of them have the fingerprint of one before them."
    text = text if found.duplicates else "No two of them have the same fingerprint."
    if found.rejects:
        reasons = ", ".join(f"{plain(reason)} ({count:,})" for reason, count in found.rejects.most_common())
        text += f" {found.rejects.total():,} images have no outlier: {reasons}."
    return text


def _licence_text(licence: str | None, what: str, origin: str) -> str:
    if licence:
        return f"This {what} is under {licence}, as its publisher states."
    return f"Its publisher states none. The licences of {origin} may apply to this {what}."


def _listed(names: Iterable[str]) -> str:
    names = sorted(map(plain, names))
    more = f", and {len(names) - LONG:,} more" if len(names) > LONG else ""
    return f"{len(names):,}: {', '.join(names[:LONG])}{more}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_id(text: str | None) -> bool:
    return text is not None and text.count("/") == 1 and " " not in text


def _size_category(count: int) -> str:
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M"]
    return names[min(len(names) - 1, max(0, len(str(count)) - 3))]


def _with_data(data: ModelCardData | DatasetCardData, text: str) -> str:
    """Metadata and text as one file, in which too long lines are wrapped; code stays as it is."""
    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    parts[::2] = ("\n\n".join(map(_wrapped, part.split("\n\n"))) for part in parts[::2])
    return f"---\n{data.to_yaml()}\n---\n\n{''.join(parts)}"


def _wrapped(block: str) -> str:
    """A paragraph or list with lines of at most `WIDTH` characters; tables and headings stay as they are."""
    if block.lstrip().startswith(("|", "#")) or all(len(line) <= WIDTH for line in block.splitlines()):
        return block
    filler = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    items = re.split(r"\n(?=- )", block)
    filler.subsequent_indent = "  " if items[-1].startswith("- ") else ""
    return "\n".join(filler.fill(" ".join(item.split())) for item in items)
