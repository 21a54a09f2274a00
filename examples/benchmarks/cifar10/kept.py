"""The benchmark of a classifier that others trained: as it is, and fine-tuned on outliers with its head kept."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from benchmark import Benchmark
from data import Data, of_each_class
from judge import CLASSES, Judge
from rows import Row

from sona_pipeline import (
    RECIPES,
    TestSets,
    as_detector,
    calibrate_detector,
    load_detector,
)

CALIBRATION_PER_CLASS = 100


class KeptBenchmark(Benchmark):
    """The benchmark with the judge as the classifier that every row starts from.

    It was trained on the ID images of the benchmark. So threshold and accuracy are watched on test images, which are
    then left out of the test.
    """

    place = "kept"

    def __init__(self, data: Data, output: Path, per_class: int, weights: Path):
        calibration = of_each_class(data.test, 0, CALIBRATION_PER_CLASS)
        held_out = set(calibration.keys)
        rest = data.test.take([index for index, key in enumerate(data.test.keys) if key not in held_out])
        super().__init__(replace(data, validation=calibration, test=rest), output, per_class)
        self.net = Judge(weights).requires_grad_(True)

    def _make_detector(self, row: Row, seed: int, folder: Path) -> None:
        """Fine-tune the classifier; of 0 epochs, only give it a threshold."""
        classifier = as_detector(self.net, CLASSES, image_size=32, mean=(0, 0, 0), std=(1, 1, 1))  # its own are inside
        if row.training.get("epochs") == 0:
            calibrate_detector(classifier, self.data.validation, output=folder)
        else:
            self._train(row, replace(RECIPES["finetune"], seed=seed, **row.training), classifier, folder)

    def scores(
        self, detectors: Sequence[tuple[str, str]], sets: TestSets, folder: str, *options, **named
    ) -> pd.DataFrame:
        """As of the benchmark; detectors are loaded with the classifier's code."""
        loaded = [(name, load_detector(place, "cpu", self.net)) for name, place in detectors]
        return super().scores(loaded, sets, folder, *options, **named)
