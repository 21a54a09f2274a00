"""Outlier sets and detectors in a folder, made when a table asks for them, and what detectors make of the test sets."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
from data import Data
from filters import FILTERS, filtered
from model import load_model
from outcome import package_versions
from pretrained import FINE_TUNING
from records import MADE, THRESHOLDS, VERSIONS, WORK, Records, Scores, digest_of_model
from remedies import REMEDIES
from rows import DISPENSABLE, SETS, Row, Table
from sets import SECONDS, Recipe, make_set

from sona_pipeline import (
    POST_HOC,
    RECIPES,
    Detector,
    GenerationSettings,
    ImageSet,
    OutlierPairs,
    Running,
    SONAPipeline,
    TestSets,
    TrainingSettings,
    evaluate_detectors,
    load_detector,
    only_run,
    open_outlier_set,
    open_outlier_sets,
    score_images,
    settle_settings,
    train_detector,
    write_text,
)

RECIPE = replace(RECIPES["small"], outlier_augmentation="none")
"""The recipe of all rows; those that are about what the package ships have its augmentation of outliers again."""
OWN = "own"
"""The score of a table where each row has its own."""
OPTIONAL = ("also", "reject", "thresholding", "search")
"""Of rows and recipes; the records of those without them do not name them."""
NEAR_TEST_IMAGES, NEAR_TEST_SEED = 1000, 100
BATCH_SIZE = 250
SECONDS_TO_WAIT = 5
"""Where another run is at all that a table still lacks."""


class Benchmark:
    """What the tables are made of; everything is made once, and taken up again after a stop.

    Args:
        data: the images.
        output: folder of the diffusion model; what is made goes below it.
        per_class: ID training images of each class.
    """

    place = "detectors"
    """Folder of the detectors."""
    running = Running(mixed_precision="bf16", cpu=True)
    recipe = RECIPE

    def __init__(self, data: Data, output: Path, per_class: int):
        self.data, self.per_class, self.model = data, per_class, output / "model"
        self.pretrained = output / "pretrained"
        self.folder = output / f"per-class-{per_class}"

    def scored(
        self, table: Table, seeds: int, tests: Mapping[str, TestSets], records: Records
    ) -> tuple[Scores, dict[str, str]]:
        """Scores of the detectors of a table, by test and row; and, by row, why there are none.

        What `records` lack is made, all rows of a seed before the next, but for what another run is at: that comes
        last. A row whose set cannot be made has none.
        """
        found: dict[tuple[str, int], Mapping[str, pd.DataFrame]] = {}
        failed: dict[str, str] = {}
        waiting, told = table.detectors(seeds), None
        while waiting:
            left = []
            for name, seed, stem in waiting:
                row = table.rows[name]
                make = partial(self._scored, table, row, seed, tests)
                alone = nullcontext() if records.has(stem) else only_run(self.folder / "running" / stem)
                try:
                    if name not in failed:
                        with alone:
                            found[name, seed] = records.of(stem, self.how_made(table, row), make)
                except BlockingIOError:
                    left.append((name, seed, stem))
                except (FileNotFoundError, ValueError, RuntimeError, IndexError) as error:
                    if not set(row.sets) & set(DISPENSABLE):
                        raise
                    kind = "" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: "
                    failed[name] = f"{kind}{error}"
            if left == waiting:
                told = _wait([stem for *_, stem in left], told)
            waiting = left
        rows = [name for name in table.rows if name not in failed]
        return {test: {name: [found[name, k][test] for k in range(seeds)] for name in rows} for test in tests}, failed

    def how_made(self, table: Table, row: Row) -> str:
        """What a row's detectors follow from, beside images and diffusion model, and what they are judged by."""
        defaults = asdict(TrainingSettings())
        made = {
            "row": _described(row),
            "set": _described(SETS[row.sets[0]]) if row.sets else None,
            **({"also": [_described(SETS[name]) for name in row.also]} if row.also else {}),
            "training": {name: value for name, value in asdict(self.recipe).items() if value != defaults[name]},
            "start": self.start_of(row),
            "scores": scores_of(table, row),
        }
        return json.dumps(made, default=str)

    def start_of(self, row: Row) -> str | None:
        """A digest of the weights that training starts from, if they are not random."""
        weights = self.pretrained / "model.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if row.is_fine_tuned else None

    def _scored(self, table: Table, row: Row, seed: int, tests: Mapping[str, TestSets]) -> dict[str, pd.DataFrame]:
        place = self.detector(row, seed)
        detector, scores = self.load(place), scores_of(table, row)
        made = [place, *(self.outliers(name, seed) for name in row.sets)]
        seconds = {f"{some.parent.name}/{some.name}": int((some / SECONDS).read_text()) for some in made}
        found = {}
        with patch.dict(POST_HOC, {name: REMEDIES[name] for name in scores if name in REMEDIES}):
            for test, sets in tests.items():
                scored = score_images(
                    detector,
                    sets,
                    scores,
                    fit_images=self.data.train,
                    validation_images=self.data.validation,
                    search_images=self.data.near_validation if row.search else None,
                    skip_unfit="all" in table.scores,
                    batch_size=BATCH_SIZE,
                    title=f"scores of {place.name}, {test}",
                )
                scored.attrs |= {MADE: self.how_made(table, row), WORK: seconds, VERSIONS: package_versions()}
                scored.attrs[THRESHOLDS] = {detector.score: detector.thresholds}
                found[test] = scored if table.scores else scored.rename(columns={row.score: OWN})
        return found

    def detector(self, row: Row, seed: int) -> Path:
        """Folder of a trained detector."""
        named = "".join(f",{key}={value}" for key, value in sorted(row.training.items()))
        kind = "+".join((str(row.outliers), *row.also))
        kind += f"{'' if row.round_trips else ',alone'}{',fine-tuned' if row.is_fine_tuned else ''}{named}"
        kind += f",reject={row.reject}" if row.reject else ""
        folder = self.folder / self.place / f"{kind}-{seed}"
        if not (folder / SECONDS).exists():
            started = time.monotonic()
            self._make_detector(row, seed, folder)
            write_text(folder / SECONDS, f"{time.monotonic() - started:.0f}\n")
        return folder

    def _make_detector(self, row: Row, seed: int, folder: Path) -> None:
        changes, start = (FINE_TUNING, load_detector(self.pretrained, "cpu")) if row.is_fine_tuned else ({}, None)
        self._train(row, replace(self.recipe, seed=seed, **changes | row.training), start, folder)

    def _train(self, row: Row, settings: TrainingSettings, start: Detector | None, folder: Path) -> None:
        images, outliers = self._training_sets(row, settings.seed)
        train_detector(
            images,
            settings,
            classifier=start,
            validation=self.data.validation,
            outliers=outliers,
            output=folder,
            running=self.running,
            title=folder.name,
        )

    def _training_sets(self, row: Row, seed: int) -> tuple[ImageSet, OutlierPairs | ImageSet | None]:
        images = self.data.train
        if row.outliers is None:
            return images, None
        if row.outliers == "real":
            return images, self.data.real_outliers.drawn(len(images))
        pairs = open_outlier_sets([self.outliers(name, seed) for name in row.sets], images)
        if row.reject:
            classifier = self.load(self.detector(Row(None), seed))
            pairs = filtered(pairs, FILTERS[row.reject], classifier)
        return pairs.images, pairs if row.round_trips else replace(pairs, reconstructions=None)

    def outliers(self, name: str, seed: int) -> Path:
        """Folder of an outlier set of the training images, by a recipe of `SETS`."""
        folder = self.folder / "sets" / f"{name}-{seed}"
        self._make(name, self.data.train, folder, seed)
        return folder

    def seed_of_set(self, name: str, seeds: int) -> int:
        """The first seed of which there is a set by a recipe of `SETS`; 0 if there is none."""
        places = {seed: self.folder / "sets" / f"{name}-{seed}" / SECONDS for seed in range(seeds)}
        return next((seed for seed, place in places.items() if place.exists()), 0)

    def test_outliers(self) -> Path:
        """Folder of SONA outliers of test images; waits where another run is making them."""
        folder, told = self.folder / "sets" / "sona-of-test-images", None
        while True:
            try:
                self._make("sona", self.data.test.drawn(NEAR_TEST_IMAGES), folder, NEAR_TEST_SEED)
                return folder
            except BlockingIOError:
                told = _wait([folder.name], told)

    def _make(self, name: str, images: ImageSet, folder: Path, seed: int) -> None:
        recipe, settings = SETS[name], GenerationSettings(self.data.ood_labels, seed=seed)
        settle_settings(self.folder / "settings.json", {"model": digest_of_model(self.model)})
        model = self.model / "early" if recipe.is_early else self.model

        def load(scheduler: str) -> SONAPipeline:
            if recipe.is_early and not model.exists():
                raise FileNotFoundError(f"{model} is missing: train the model with --early-steps, as README.md says")
            return load_model(model, scheduler)

        make_set(recipe, images, load, folder, settings)

    def tests(self, table: Table) -> dict[str, TestSets]:
        """What the detectors of a table are judged by: "validation" for choices, and "test" once, of what is chosen."""
        data = self.data
        far = {name: data.far_validation[name] for name in table.far_validation}
        tests = {"validation": TestSets(data.validation, {"held-out classes": data.near_validation}, far)}
        if table.is_choice:
            return tests
        return tests | {"test": TestSets(data.test, {"cifar100": data.near_test}, data.far_test)}

    def near_tests(self) -> dict[str, TestSets]:
        """SONA outliers of test images as near-OOD test sets, each beside real images of unseen classes."""
        pairs = open_outlier_set(self.test_outliers(), self.data.test)
        strong = [k for k, strength in enumerate(pairs.strengths) if strength >= RECIPE.min_strength]
        sets = {
            "CIFAR-100": self.data.near_test,
            "SONA": pairs.outliers,
            f"SONA from strength {RECIPE.min_strength} on": pairs.outliers.take(strong),
        }
        return {name: TestSets(self.data.test, {name: images}) for name, images in sets.items()}

    def load(self, place: str | Path) -> Detector:
        """The detector in a folder."""
        return load_detector(place, "cpu")

    def scores(
        self, detectors: Sequence[tuple[str, str]], sets: TestSets, folder: str, scores: Sequence[str]
    ) -> pd.DataFrame:
        """`evaluate_detectors`, which writes to `results(folder)`."""
        loaded = [(name, self.load(place)) for name, place in detectors]
        return evaluate_detectors(loaded, sets, self.results(folder), scores, batch_size=BATCH_SIZE)

    def results(self, name: str) -> Path:
        """Folder of what a table's detectors were found to do, below the benchmark's folder."""
        return self.folder / "results" / name


def scores_of(table: Table, row: Row) -> Sequence[str]:
    """The scores that a row's detectors are judged by; of a search, those that it can change."""
    if row.search:
        return [name for name, method in POST_HOC.items() if method.grid]
    return table.scores or [row.score]


def _wait(names: Sequence[str], told: Sequence[str] | None) -> Sequence[str]:
    """Wait a little for what another run is at, and return it; say so, unless that was what was told last."""
    if names != told:
        print(f"Another run is at {', '.join(names)}: waiting for it")
    time.sleep(SECONDS_TO_WAIT)
    return names


def _described(what: Row | Recipe) -> dict[str, Any]:
    return {name: value for name, value in asdict(what).items() if value or name not in OPTIONAL}
