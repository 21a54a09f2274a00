"""The benchmark of a classifier that others trained: as it is, and fine-tuned on outliers with its head kept."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from benchmark import RUNNING, Benchmark
from data import Data, of_each_class
from judge import CLASSES, Judge
from rows import Row
from sets import SECONDS

from sona_pipeline import (
    RECIPES,
    TestSets,
    as_detector,
    calibrate_detector,
    load_detector,
    train_detector,
    write_text,
)

CALIBRATION_PER_CLASS = 100


class KeptBenchmark(Benchmark):
    """The benchmark with the judge as the classifier that every row starts from.

    It was trained on the ID images of the benchmark. So threshold and accuracy are watched on test images, which are
    then left out of the test.
    """

    def __init__(self, data: Data, output: Path, per_class: int, weights: Path):
        labels, keys = data.test, of_each_class(data.test, 0, CALIBRATION_PER_CLASS)
        held_out = set(keys.keys)
        rest = [index for index, key in enumerate(labels.keys) if key not in held_out]
        super().__init__(replace(data, validation=keys, test=labels.take(rest)), output, per_class)
        self.net = Judge(weights).requires_grad_(True)

    def detector(self, row: Row, seed: int) -> Path:
        """Folder of the classifier, fine-tuned, or with a threshold only where there are no epochs."""
        changes = "".join(f",{key}={value}" for key, value in sorted(row.training.items()))
        folder = self.folder / "kept" / f"{row.outliers}{changes}-{seed}"
        if (folder / SECONDS).exists():
            return folder
        started = time.monotonic()
        classifier = as_detector(self.net, CLASSES, image_size=32, mean=(0, 0, 0), std=(1, 1, 1))  # its own are inside
        if row.training.get("epochs") == 0:
            calibrate_detector(classifier, self.data.validation, output=folder)
        else:
            images, outliers = self._training_sets(row, seed)
            train_detector(
                images,
                replace(RECIPES["finetune"], seed=seed, **row.training),
                classifier=classifier,
                validation=self.data.validation,
                outliers=outliers,
                output=folder,
                running=RUNNING,
                title=f"{row.outliers}, kept, seed {seed}",
            )
        write_text(folder / SECONDS, f"{time.monotonic() - started:.0f}\n")
        return folder

    def scores(
        self, detectors: Sequence[tuple[str, str]], sets: TestSets, folder: str, *options, **named
    ) -> pd.DataFrame:
        """As of the benchmark; detectors are loaded with the classifier's code."""
        loaded = [(name, load_detector(place, "cpu", self.net)) for name, place in detectors]
        return super().scores(loaded, sets, folder, *options, **named)
