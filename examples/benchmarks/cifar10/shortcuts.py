"""What might give images away besides their meaning: measured in every set, and taken from all of them alike.

A detector may go by saturation, by the filter that images were scaled with, by their codec, or by the traces of an
autoencoder. If it does, AUROCs fall when ID and OOD images alike lose that.
"""

import io
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from outcome import Part
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchvision.transforms.v2.functional import to_pil_image

from sona_pipeline import ImageSet, SONAPipeline, TestSets

MOST = 500
"""Images of a set that are measured."""
BLOCK, QUALITY = 8, 75
"""Of JPEG."""
MEASURES_NOTE = f"""Means over {MOST} images at most. In brackets: the AUROC in % by which the measure alone tells the
images from the ID images, in whichever direction; 50 is chance."""
CHANGES_NOTE = """AUROC in % by the energy, mean over seeds, when all images, ID and OOD, undergo a change first. The
detectors were trained on images as they are."""
Measure = Callable[[np.ndarray], np.ndarray]
Change = Callable[[Image.Image], Image.Image]


def saturation(pixels: np.ndarray) -> np.ndarray:
    """Mean saturation (of HSV) of images `[N, H, W, 3]` in [0, 1]."""
    most, least = pixels.max(axis=3), pixels.min(axis=3)
    return ((most - least) / np.maximum(most, 1e-6)).mean(axis=(1, 2))


def clipped(pixels: np.ndarray) -> np.ndarray:
    """Share of the values that are black or white."""
    return ((pixels == 0) | (pixels == 1)).mean(axis=(1, 2, 3))


def sharpness(pixels: np.ndarray) -> np.ndarray:
    """Mean second difference of the grey levels along rows and columns, by their standard deviation."""
    grey = pixels.mean(axis=3)
    bends = sum(np.abs(np.diff(grey, 2, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)) / 2
    return bends / np.maximum(grey.std(axis=(1, 2)), 1e-6)


def blocks(pixels: np.ndarray) -> np.ndarray:
    """Mean step of the grey levels across the borders of JPEG's blocks, by that elsewhere; 1 without blocks."""
    grey = pixels.mean(axis=3)
    ratios = []
    for axis in (1, 2):
        steps = np.abs(np.diff(grey, axis=axis)).mean(axis=3 - axis)
        is_border = np.arange(1, grey.shape[axis]) % BLOCK == 0
        ratios.append(steps[:, is_border].mean(axis=1) / np.maximum(steps[:, ~is_border].mean(axis=1), 1e-6))
    return sum(ratios) / 2


MEASURES: dict[str, Measure] = {
    "saturation": saturation,
    "clipped": clipped,
    "sharpness": sharpness,
    "blocks": blocks,
}


def grey(image: Image.Image) -> Image.Image:
    """The image without its colours."""
    return image.convert("L").convert("RGB")


def softened(image: Image.Image) -> Image.Image:
    """The image at half its size and back, by which traces of earlier scaling go."""
    small = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    return small.resize(image.size, Image.Resampling.LANCZOS)


def as_jpeg(image: Image.Image) -> Image.Image:
    """The image by way of JPEG."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=QUALITY)
    return Image.open(file).convert("RGB")


def round_trip(pipe: SONAPipeline) -> Change:
    """By way of the autoencoder of a pipeline, without the noise of its latents."""

    @torch.no_grad()
    def change(image: Image.Image) -> Image.Image:
        pixels = pipe.preprocess_image([image.convert("RGB")])
        back = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample[0]
        return to_pil_image((back / 2 + 0.5).clamp(0, 1))

    return change


def changes(pipe: SONAPipeline) -> dict[str, Change]:
    """What all images undergo, by name."""
    return {
        "as they are": lambda image: image,
        "grey": grey,
        "half the size and back": softened,
        f"JPEG {QUALITY}": as_jpeg,
        "autoencoder": round_trip(pipe),
    }


def changed(sets: TestSets, change: Change) -> TestSets:
    """The same sets after a change of every image."""
    near, far = ({name: images.changed(change) for name, images in group.items()} for group in (sets.near, sets.far))
    return TestSets(sets.id.changed(change), near, far)


def describe_measures(known: ImageSet, sets: Mapping[str, ImageSet], pipe: SONAPipeline) -> Part:
    """A row a set: the mean of each measure, and how well it alone tells the set from ID images."""
    back, rows = round_trip(pipe), []
    own = _measured(known, back)
    for name, images in {"ID": known, **sets}.items():
        row: dict[str, str] = {"set": name}
        for measure, values in _measured(images, back).items():
            row[measure] = f"{values.mean():.3f} ({_told_by(own[measure], values):.0f})"
        rows.append(row)
    return Part("Sets", MEASURES_NOTE, pd.DataFrame(rows), "sets.csv")


def _measured(images: ImageSet, back: Change) -> dict[str, np.ndarray]:
    pictures = [images.image(i).convert("RGB") for i in range(0, len(images), -(-len(images) // MOST))]
    pixels = np.stack([np.asarray(picture) for picture in pictures]) / 255
    again = np.stack([np.asarray(back(picture)) for picture in pictures]) / 255
    found = {name: measure(pixels) for name, measure in MEASURES.items()}
    return found | {"autoencoder's error": np.abs(again - pixels).mean(axis=(1, 2, 3))}


def _told_by(known: np.ndarray, other: np.ndarray) -> float:
    auroc = roc_auc_score([0] * len(known) + [1] * len(other), np.concatenate([known, other]))
    return 100 * max(auroc, 1 - auroc)


def describe_changes(found: Mapping[str, pd.DataFrame]) -> Part:
    """A row a detector and group: the AUROC by change, from `evaluate_detectors` for each."""
    columns = {}
    for name, table in found.items():
        rows = table[(table["metric"] == "auroc") & table["group"].isin(["near_ood", "far_ood"])]
        keys = rows["method"] + ", " + rows["group"].replace({"near_ood": "near", "far_ood": "far"}) + " " + rows["set"]
        columns[name] = rows.set_index(keys)["mean"].round(1)
    cells = pd.DataFrame(columns)
    cells.insert(0, "row", cells.index)
    return Part("AUROC after a change of all images", CHANGES_NOTE, cells, "changes.csv")
