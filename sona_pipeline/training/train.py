"""Job: train a detector on ID images and their outliers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from logging import getLogger
from pathlib import Path

from accelerate import Accelerator

from sona_pipeline.common.files import digest_of, only_run, settle_settings, versions
from sona_pipeline.common.names import expanded
from sona_pipeline.common.processes import process_state
from sona_pipeline.data.class_names import named_alike
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import OutlierPairs
from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.training.devices import new_accelerator
from sona_pipeline.training.items import TrainingSets, in_order_of
from sona_pipeline.training.loop import CHECKPOINT, Training, mi_weight
from sona_pipeline.training.methods import METHODS
from sona_pipeline.training.settings import Running, TrainingSettings, check_settings
from sona_pipeline.training.start import check_without_classifier, classes_of, digest_of_weights, kept_settings

logger = getLogger(__name__)
NEW_KEYS = {"outlier_augmentation": "none", "freeze_batch_norm": False}
"""What version 0.1.0 did not record, and how it was then."""
UNRECORDED = ("outlier_content",)
"""What earlier runs did not record, and is taken to be the same."""


def train_detector(
    images: ImageSet,
    settings: TrainingSettings,
    *,
    classifier: Detector | None = None,
    validation: ImageSet | None = None,
    outliers: OutlierPairs | ImageSet | None = None,
    output: str | Path | None = None,
    running: Running | None = None,
    title: str = "training",
) -> Detector:
    """Train a detector with L = CE(ID) + beta OE(outliers) + gamma MI(f(x), f(x_OOD)), (8) of the paper.

    Args:
        images: labelled ID images.
        settings: see `TrainingSettings`; of a classifier that is kept, it has network, image size and preprocessing.
        classifier: a trained one to start from, whose weights and head are kept, see `load_classifier` and
            `as_detector`. Its classes are found by their names.
        validation: labelled ID images that the threshold is calibrated on, and the best epoch is chosen by.
        outliers: outliers of these very images, as `open_outlier_set` gives them, whose VAE round trips are trained on
            as ID images so that the traces of the decoder do not give outliers away; or any images to be exposed to;
            or none, for cross-entropy only.
        output: folder for the detector, a checkpoint after every epoch, and `log.jsonl` with a line an epoch. A run
            that was stopped goes on from its checkpoint and ends with the weights of an undisturbed one; a finished one
            is only loaded. Of several processes, all go on with the bound of mutual information of the first.
        running: see `Running`.
        title: what the progress bar says.

    Raises:
        ValueError: a setting is out of its range or cannot be honoured on this machine, or the sets do not go together.
        FloatingPointError: the loss is no longer finite.
        BlockingIOError: another run is writing to `output`.
        OSError: there is no room for the checkpoint.
    """
    if classifier is None:
        check_without_classifier(settings)
    else:
        settings = kept_settings(settings, classifier)
        images = images.with_classes(classes_of(classifier, images.classes))
    validation = in_order_of(validation, images.classes) if validation is not None else None
    running, sets = running or Running(), TrainingSets(images, validation, outliers)
    check_training(sets, settings)
    folder = expanded(output) if output else None
    process_state(running.cpu)
    accelerator = new_accelerator(running, settings.accumulation, folder)
    training = Training(sets, settings, accelerator, classifier=classifier, workers=running.workers, folder=folder)
    if folder is None:
        return training.run(title)
    with only_run(folder) if accelerator.is_main_process else nullcontext():
        _settle(folder, accelerator, _settled(sets, training, running))
        if not _is_finished(folder):
            if running.tracker:
                _start_tracker(accelerator, settings)
            detector = training.run(title)
            if accelerator.is_main_process:
                save_detector(detector, folder)
                (folder / CHECKPOINT).unlink(missing_ok=True)
            for tracker in accelerator.trackers:
                tracker.finish()
            accelerator.wait_for_everyone()
    return load_detector(folder, accelerator.device, classifier.network.own_module() if classifier else None)


def check_training(sets: TrainingSets, settings: TrainingSettings) -> None:
    """Raise ValueError if the settings or the sets cannot be trained with; warn of outliers that are ID images."""
    check_settings(settings)
    sets.check(settings.min_strength)
    mi_weight(settings, sets.outliers)
    if settings.outlier_weight and METHODS[settings.method].needs_outliers and sets.outliers is None:
        raise ValueError(
            f"`outlier_weight` is {settings.outlier_weight}, but there are no outliers for the method"
            f" {settings.method!r}: give some, or leave the weight out to train by cross-entropy only"
        )
    method = METHODS[settings.method]
    if sets.outliers is not None and not method.needs_outliers:
        able = [name for name, one in METHODS.items() if one.needs_outliers]
        raise ValueError(
            f"the method {settings.method!r} is trained without outliers, or makes its own, and would not look at those"
            f" given: leave them out, or take one of {able}"
        )
    is_nothing_without = method.needs_outliers and (method.heads > 1 or method.looks_at_all)
    if is_nothing_without and (sets.outliers is None or settings.outlier_weight == 0):
        raise ValueError(
            f"the method {settings.method!r} is nothing without outliers: give some, and a weight above 0, or take the"
            " method 'oe' for cross-entropy only"
        )
    if sets.validation is None and settings.max_accuracy_drop is not None:
        raise ValueError(
            f"`max_accuracy_drop` is {settings.max_accuracy_drop}, but there are no validation images to watch an"
            " accuracy on: give some, or set it to None"
        )
    if sets.validation is None and settings.id_rate is not None:
        raise ValueError(
            f"a threshold at an ID rate of {settings.id_rate} needs validation images: give some, or set `id_rate` to"
            " None for a detector without a threshold"
        )
    _warn_of_id_classes(sets)


def _warn_of_id_classes(sets: TrainingSets) -> None:
    """Say by name which ID classes labelled outliers hold."""
    if isinstance(sets.outliers, ImageSet):
        held = {sets.outliers.label_name(k) for k, label in enumerate(sets.outliers.labels) if label >= 0}
        words = sorted(name for name in held if not name.isdigit())  # numbers may stand for anything
        if shared := named_alike(words, sets.images.classes):
            logger.warning(
                "The outliers hold images of %s, which are ID classes: a detector learns to call these OOD. Leave them"
                " out.",
                ", ".join(map(repr, shared)),
            )


def _is_finished(folder: Path) -> bool:
    """Whether an earlier run has written the detector."""
    return (folder / "config.json").exists()


def _settle(folder: Path, accelerator: Accelerator, settled: dict) -> None:
    """Check the settings of an earlier run, on every process, or write those of a new one."""
    path, is_begun = folder / "training.json", _is_finished(folder) or (folder / CHECKPOINT).exists()
    if is_begun and not path.exists():
        raise ValueError(f"{folder} holds a model that this training did not make: choose another folder")
    if is_begun:
        unrecorded = {key: settled[key] for key in UNRECORDED if key in settled}
        settle_settings(path, settled, then=NEW_KEYS | unrecorded)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not is_begun:
        path.unlink(missing_ok=True)  # of a run that did not get through its first epoch
        settle_settings(path, settled, {"versions": versions()})


def _start_tracker(accelerator: Accelerator, settings: TrainingSettings) -> None:
    try:
        accelerator.init_trackers("sona", asdict(settings))
    except Exception as error:  # each tracker says it in its own way
        raise ValueError(f"the tracker cannot be started: {' '.join(str(error).split())[:300]}") from error


def _settled(sets: TrainingSets, training: Training, running: Running) -> dict:
    """All that the weights depend on."""
    settings, accelerator = training.settings, training.accelerator
    outliers, made = sets.outliers, None
    if isinstance(outliers, OutlierPairs):
        made = digest_of([outliers.outliers.keys, outliers.strengths, outliers.reconstructions is not None])
    elif outliers:
        made = digest_of(outliers.keys)
    data = {
        "images": digest_of([sets.images.keys, sets.images.labels]),
        "classes": sets.images.classes,
        "validation": digest_of([sets.validation.keys, sets.validation.labels]) if sets.validation else None,
    }
    how = {
        "mixed_precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "workers": running.workers,
    }
    exposure = {"outliers": made, "mi_weight": mi_weight(settings, outliers)}
    form, content = getattr(outliers, "form", None), getattr(outliers, "content", None)
    seen = ({"outlier_form": asdict(form)} if form else {}) | ({"outlier_content": content} if content else {})
    start = {"initial_weights": digest_of_weights(training.detector)} if training.is_kept else {}
    return asdict(settings) | data | exposure | how | seen | start
