"""Images, labels and settings of the whole way, opened and checked from what its settings say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sona_pipeline.common.configuration import Given, read_configuration, with_preset
from sona_pipeline.common.places import real_place
from sona_pipeline.common.processes import process_state
from sona_pipeline.common.settings import Setting, settings_of
from sona_pipeline.data.class_names import Names
from sona_pipeline.data.image_set import ImageSet, are_same, check_there, hold_out
from sona_pipeline.data.images import open_images
from sona_pipeline.data.lists import is_image_list
from sona_pipeline.data.settings import ImageSource
from sona_pipeline.detection.classifiers import load_classifier
from sona_pipeline.detection.detector import Detector
from sona_pipeline.detection.settings import ClassifierSettings
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.evaluation.settings import TestImages
from sona_pipeline.evaluation.sources import open_named
from sona_pipeline.fitting.both import check_method
from sona_pipeline.fitting.settings import FitImages, FitJob, FitModels
from sona_pipeline.generation.settings import (
    GENERATE,
    GenerationSettings,
    LabelSettings,
    ModelSettings,
    OutputSettings,
    SourceImages,
    settings_in as generation_in,
)
from sona_pipeline.generation.sources import open_sources
from sona_pipeline.training.devices import check_running
from sona_pipeline.training.items import in_order_of
from sona_pipeline.training.settings import (
    RECIPES,
    Running,
    TrainingImages,
    TrainingJob,
    TrainingSettings,
    check_settings,
    settings_in as training_in,
)
from sona_pipeline.training.start import check_without_classifier, classes_of, kept_settings

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
"""Shares of the images that are held out where no others are given."""
SMALL_SIDE = 64
"""Pixels of the short side up to which images are small."""
SMALL, DEFAULT, FEWEST = 3000, 3, 2
"""Images up to which classes are held out by default, how many, and how many have to be left to be told apart."""
TRAIN = (TrainingImages, TrainingSettings, TrainingJob, Running)


@dataclass(frozen=True)
class FitSources:
    """What the whole way starts from.

    Attributes:
        train, validation: labelled ID images.
        sets: test images.
        generation, writing: how outliers are made and written.
        training, running: how detectors are trained.
        classifier: that both start from, and keep.
        id_names: all names of the ID classes; by default what they are called in prompts.
        chooses_score: whether classes that are held out choose the detectors' score, and not `training`.
    """

    train: ImageSet
    validation: ImageSet
    sets: TestSets
    generation: GenerationSettings
    training: TrainingSettings
    writing: OutputSettings = field(default_factory=OutputSettings)
    running: Running = field(default_factory=Running)
    classifier: Detector | None = None
    id_names: Mapping[str, Names] = field(default_factory=dict)
    chooses_score: bool = False

    @property
    def names(self) -> dict[str, Names]:
        """All names of every ID class."""
        return {name: self.id_names.get(name) or (self.generation.id_label(name),) for name in self.train.classes}

    @property
    def parts(self) -> dict[str, ImageSet]:
        """The labelled images by what they are for."""
        return {"train": self.train, "validation": self.validation, "test": self.sets.id}


class Opened(NamedTuple):
    """What settings lead to: sources, the model, how many classes are held out in turn, and warnings."""

    sources: FitSources
    loading: ModelSettings
    check_classes: int
    warnings: list[str]


def open_fit(job: FitJob, source: FitImages, models: FitModels, asked: ClassifierSettings) -> Opened:
    """Open images and labels, hold out what no images are given for, and check that everything goes together.

    Raises:
        FileNotFoundError: something is not there.
        ValueError: settings, images and labels do not go together, there are less than two classes, a class has too few
            images, or several processes were started.
    """
    if process_state().num_processes > 1:
        raise ValueError("`sona fit` runs in one process: for several, use `sona generate` and `sona train` themselves")
    made = _configured(models.generate_config, GENERATE.values(), generation_in)
    trained = _configured(models.train_config, TRAIN, training_in)
    own = {setting.name: getattr(source, setting.name) for setting in settings_of(ImageSource)}
    loading, writing = made.of(ModelSettings, **_given(model=models.model)), made.of(OutputSettings)
    if writing.part or writing.format != "folder":
        raise ValueError("`sona fit` makes whole sets as folders: leave `part` and `format` out of --generate-config")
    found = open_sources(
        made.of(SourceImages, **own),
        made.of(LabelSettings, **_given(ood_labels=models.ood_labels)),
        loading.model,
        made.of(GenerationSettings, ood_labels=(), seed=job.seed),
        writing,
    )
    classifier = load_classifier(asked) if asked.classifier else None
    images = found.images.with_classes(classes_of(classifier, found.images.classes)) if classifier else found.images
    train, validation, test = _parts(source, images, job.seed)
    sets, running = TestSets(test, *open_named(_named(source))[:2]), trained.of(Running)
    check_running(running, None)
    settings = _training(models, trained, train, classifier, job.seed)
    chooses_score = "score" not in trained and classifier is None
    sources = FitSources(
        train, validation, sets, found.settings, settings, writing, running, classifier, found.id_names, chooses_score
    )
    blend = found.settings.blend
    count = number_of_checks(job.check_classes, train, validation, test, has_classifier=bool(classifier), blend=blend)
    return Opened(sources, loading, count, found.left_out())


def number_of_checks(asked: int | None, *parts: ImageSet, has_classifier: bool, blend: str = "none") -> int:
    """How many classes are held out: as asked, or else `DEFAULT` of small data, as long as `FEWEST` are left.

    Of outliers between two classes, those that may mean the class go with it: of three classes, none would stay.

    Raises:
        ValueError: more are asked for than leave enough classes at a time, or a classifier has seen all of them.
    """
    classes, fewest = parts[0].classes, FEWEST + (blend == "classes")
    if asked is None:
        is_small = sum(map(len, parts)) <= SMALL and not has_classifier
        return max(0, min(DEFAULT, len(classes) - fewest)) if is_small else 0
    if asked and has_classifier:
        raise ValueError(
            "--check-classes asks about classes that no training knew, but the classifier knows all: leave it out, and"
            " give --near images"
        )
    most = len(classes) if len(classes) > fewest else 0
    if asked > most:
        raise ValueError(
            f"--check-classes is {asked}, but has to be at most {most} of {len(classes)} classes, of which {fewest} or"
            " more are left each time"
        )
    return asked


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _configured(path: Path | None, kinds: Iterable[Any], settings_in: Callable[[dict], dict]) -> Given:
    """The values of settings in a file, if there is one, and beneath them those of the preset."""
    known: dict[str, Setting] = {}
    for kind in kinds:
        known = {setting.name: setting for setting in settings_of(kind)} | known
    return with_preset(read_configuration(path, known, settings_in) if path else {}, known)


def _training(
    models: FitModels, given: Given, train: ImageSet, classifier: Detector | None, seed: int
) -> TrainingSettings:
    name = models.recipe or given.get("recipe") or _recipe(train, classifier)
    settings = given.of(TrainingSettings, RECIPES[name], seed=seed)
    check_settings(settings)
    check_method(settings)
    if settings.id_rate is None:
        raise ValueError("`id_rate` is None, but a report is about a threshold: leave it out of --train-config")
    if classifier:
        return kept_settings(settings, classifier)
    check_without_classifier(settings)
    return settings


def _recipe(train: ImageSet, classifier: Detector | None) -> str:
    """What is trained by where nothing is said."""
    return "finetune" if classifier else "small" if _is_small(train) else "imagenet200"


def _is_small(images: ImageSet, sample: int = 16) -> bool:
    """Whether the median image of an even sample is small."""
    sides = []
    for i in range(0, len(images), max(1, len(images) // sample)):
        try:
            sides.append(min(images.image(i).size))
        except OSError:
            continue
    return bool(sides) and float(np.median(sides)) <= SMALL_SIDE


def _parts(source: FitImages, images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Training, validation and test images: those that are given, or shares of all."""
    if len(images.classes) < 2:
        raise ValueError(f"a detector needs two classes or more; {source.data} has only {list(images.classes)}")
    needed = 1 + (source.test is None) + (source.validation is None)
    counts = Counter(map(images.label_name, range(len(images))))
    if few := [name for name in images.classes if counts[name] < needed]:
        raise ValueError(
            f"class {few[0]!r} has {counts[few[0]]} of the {needed} images that it needs, since one is held out for the"
            " threshold and one for the test unless --validation and --test are given: add some, or leave the class out"
        )
    test = _open_other(source, "test", images) if source.test else None
    validation = _open_other(source, "validation", images) if source.validation else None
    places = {real_place(place) for place in (source.test, source.validation) if place}
    if test and validation and len(places) == 1 and are_same(test, validation):
        raise ValueError(
            f"--validation and --test {source.test} are the same images: give others, or leave --validation out to hold"
            " some out"
        )
    left = 1.0
    if test is None:
        images, test = hold_out(images, TEST_SHARE, seed)
        left -= TEST_SHARE
    if validation is None:
        images, validation = hold_out(images, VALIDATION_SHARE / left, seed + 1)
    return images, validation, test


def _open_other(source: FitImages, split: str, images: ImageSet) -> ImageSet:
    """The validation or test images that are given."""
    place = getattr(source, split)
    found = open_images(
        place,
        split=split,
        image_column=source.image_column,
        label_column=source.label_column,
        image_root=source.image_root,
        class_list=source.data if is_image_list(source.data) else None,
        labelled=True,
    )
    check_there(found)
    found = in_order_of(found, images.classes)
    if found.classes != images.classes:
        raise ValueError(f"--{split} {place} has the classes {found.classes}, and not {images.classes}: give the same")
    if real_place(place) == real_place(source.data) and are_same(found, images):
        raise ValueError(f"--{split} {place} are the training images: give others, or leave it out to hold some out")
    return found


def _named(source: FitImages) -> TestImages:
    return TestImages(
        near=source.near,
        far=source.far,
        image_column=source.image_column,
        label_column=source.label_column,
        image_root=source.image_root,
    )
