"""Job: a new threshold for a trained detector, from ID images of today."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape

from sona_pipeline.common.devices import usable_device
from sona_pipeline.common.files import read_json, write_text
from sona_pipeline.common.messages import warning
from sona_pipeline.common.names import expanded
from sona_pipeline.common.progress import Track
from sona_pipeline.data.class_names import finder
from sona_pipeline.data.image_set import ImageSet, check_there, readable
from sona_pipeline.detection.classifiers import load_classifier
from sona_pipeline.detection.detector import Detector, save_detector
from sona_pipeline.detection.settings import ClassifierSettings
from sona_pipeline.detection.thresholds import check_rate, fewest


@dataclass(frozen=True)
class Calibration:
    """What came of a calibration.

    Attributes:
        detector: with the new threshold.
        place: where it was written.
        before: the threshold that it had.
        images: how many counted.
        unreadable: why others did not.
        too_few: of a calibration per class, how many images there were of the classes without a threshold of their own.
    """

    detector: Detector
    place: Path
    before: float | None
    images: int
    unreadable: list[str]
    too_few: dict[str, int]

    def in_words(self) -> list[str]:
        """The same as lines for the console."""
        detector, lines = self.detector, []
        if self.unreadable:
            count = f"Images that cannot be read, and do not count: {len(self.unreadable)}"
            lines.append(warning(f"{count}; the first: {self.unreadable[0]}"))
        was = "none" if self.before is None else f"{self.before:.4g}"
        accepted = f"accepts {100 * (detector.id_rate or 0):g} % of {self.images} images"
        lines.append(f"Threshold {detector.threshold:.4g} (was {was}), which {accepted}: {escape(str(self.place))}")
        if detector.class_thresholds is not None:
            own = sum(one is not None for one in detector.class_thresholds)
            lines.append(f"{own} of {len(detector.classes)} classes have a threshold of their own.")
        if self.too_few:
            counts = ", ".join(f"{name} ({count})" for name, count in self.too_few.items())
            needed = fewest(detector.id_rate or 0)
            lines.append(f"The common one is for those with fewer than {needed} images: {escape(counts)}.")
        return lines


def calibrate_detector(
    detector: str | Path | Detector,
    images: ImageSet,
    id_rate: float = 0.95,
    *,
    per_class: bool = False,
    output: str | Path | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Calibration:
    """Give a detector the threshold that accepts a share of new ID images; its weights stay as they are.

    Args:
        detector: its folder, whose config.json is replaced, whole or not at all; or, with `output`, its Hub id, a
            detector in memory, or a classifier of transformers or timm as `load_classifier` takes it.
        images: ID images that it was not trained on. Labels are not needed: classes are those that it predicts.
        id_rate: share of the images that is to be accepted, in (0, 1); 1 - `id_rate` are false alarms.
        per_class: also a threshold for each predicted class. Classes of too few images, see `thresholds.fewest`, keep
            the common one, and so may accept another share.
        output: folder for a copy of weights and settings; by default the detector is changed in place.
        batch_size: images at once.
        device: an accelerator by default, if there is one.

    Raises:
        FileNotFoundError: there is no detector, or no image can be had.
        PermissionError: the settings may not be written.
        ValueError: the rate is out of its range, there are no images or none that can be read, they are of classes that
            the detector does not know, a score is not finite, no class has enough images, `output` holds a detector, or
            is missing for one on the Hub.
    """
    check_rate(id_rate)
    loaded = _loaded(detector, device)
    place = _checked_place(detector, output)
    _check_images(images, loaded)
    scores, predicted, unreadable = _scored(loaded, images, batch_size)
    found = loaded.calibrated(scores, id_rate, predicted if per_class else None)
    if output is None:
        write_text(place / "config.json", json.dumps(found.settings, sort_keys=True, indent=2))
    else:
        save_detector(found, place)
    own = found.class_thresholds or []
    too_few = {
        name: int((predicted == index).sum())
        for index, (name, one) in enumerate(zip(found.classes, own))
        if one is None
    }
    return Calibration(found, place, loaded.threshold, len(scores), unreadable, too_few)


def calibrated_on(detector: Detector, images: ImageSet, id_rate: float, batch_size: int = 64) -> Detector:
    """The same network with the threshold that accepts a share of ID images; nothing is written.

    Args:
        detector, images, id_rate, batch_size: see `calibrate_detector`.

    Raises:
        ValueError: the rate is out of its range, no image can be read, or a score is not finite.
    """
    return detector.calibrated(_scored(detector, images, batch_size)[0], id_rate)


def _loaded(detector: str | Path | Detector, device: str | torch.device | None) -> Detector:
    if isinstance(detector, Detector):
        return detector
    return load_classifier(ClassifierSettings(str(detector))).to(usable_device(device))


def _checked_place(detector: str | Path | Detector, output: str | Path | None) -> Path:
    """The folder to write to."""
    is_folder = not isinstance(detector, Detector) and (expanded(detector) / "config.json").is_file()
    if output is None and not (is_folder and "network" in read_json(expanded(str(detector)) / "config.json")):
        what = "this detector" if isinstance(detector, Detector) else detector
        raise ValueError(
            f"{what} is no folder of a detector: give a folder for the calibrated copy (`output`, --output)"
        )
    folder = expanded(str(detector) if output is None else output)
    if output is None and not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} may not be written to: give a folder for a copy (`output`, --output)")
    if output is not None and (folder / "config.json").exists():
        raise ValueError(
            f"{folder} holds a detector already: choose another folder, or leave it out to calibrate in place"
        )
    return folder


def _check_images(images: ImageSet, detector: Detector) -> None:
    if not len(images):
        raise ValueError("there are no images to calibrate by: give some")
    find = finder({name: index for index, name in enumerate(detector.classes)})
    names = [images.classes[label] for label in sorted(set(images.labels))]
    if unknown := [name for name in names if find(name) is None]:
        raise ValueError(
            f"the images are of the classes {unknown[:5]}, which the detector does not know: calibrate by images of its"
            f" own classes, {detector.classes[:5]}, ...; if these are no classes, put the images into one folder"
        )
    check_there(images)


def _scored(detector: Detector, images: ImageSet, batch_size: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Scores and predicted classes `[N]` of the images that can be read, and why others cannot."""
    unreadable: list[str] = []
    said = []
    with Track("calibration", len(images)) as track:
        for one in detector.numbered(readable(images, unreadable), batch_size):
            said.append(one)
            track.reach(len(said) + len(unreadable))
    if not said:
        raise ValueError(f"none of the {len(images)} images can be read; the first: {unreadable[0]}")
    scores = torch.tensor([one.score for _, one in said], dtype=torch.double)
    return scores, torch.tensor([index for index, _ in said]), unreadable
