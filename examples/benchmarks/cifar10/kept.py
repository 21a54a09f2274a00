"""The benchmark of a classifier that is kept: as it is, and fine-tuned on outliers with its head."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from benchmark import RECIPE, Benchmark
from data import Data, of_each_class
from judge import CLASSES, Judge
from pretrained import FINE_TUNING, SMALL_SIZE
from rows import Row

from sona_pipeline import (
    RECIPES,
    Detector,
    Running,
    TestSets,
    as_detector,
    calibrate_detector,
    load_detector,
)

CALIBRATION_PER_CLASS = 100
AS_IT_IS = {"epochs": 0}
"""Of a row that is not trained."""
UNBOUND = Row("unipc-12", {"max_accuracy_drop": None})
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the change of the weights that fine-tuning makes."""


class KeptBenchmark(Benchmark):
    """The benchmark with a classifier that every row starts from.

    Args:
        data, output, per_class: see `Benchmark`.
        classifier: that is kept; None for a network with the features of ImageNet, fine-tuned on the ID images first.
        place: folder of the detectors.
    """

    def __init__(
        self, data: Data, output: Path, per_class: int, classifier: Detector | None, place: str = "kept-efficientnet"
    ):
        super().__init__(data, output, per_class)
        self.place, self.recipe = place, RECIPES["finetune"]
        if classifier is None:
            self.running = Running(mixed_precision="no", cpu=True)  # depthwise convolutions are slow in bfloat16
            classifier = load_detector(self.detector(Row(None, is_fine_tuned=True), 0), "cpu")
        self.classifier = classifier

    def _make_detector(self, row: Row, seed: int, folder: Path) -> None:
        """Fine-tune the classifier, or only give it a threshold."""
        if row.is_fine_tuned:
            start = load_detector(self.pretrained, "cpu").with_settings(image_size=SMALL_SIZE)
            self._train(row, replace(RECIPE, seed=seed, **FINE_TUNING), start, folder)
        elif row.training == AS_IT_IS:
            calibrate_detector(self.classifier, self.data.validation, output=folder)
        else:
            settings = replace(self.recipe, seed=seed, **row.training)
            self._train(row, settings, self.classifier, folder)

    def by_share(self, tests: TestSets, seeds: int) -> pd.DataFrame:
        """What detectors do that have a share of the change that fine-tuning with SONA makes, and nothing else."""
        start, found = self.classifier.state_dict(), []
        for seed in range(seeds):
            end = self.load(self.detector(UNBOUND, seed))
            for share in SHARES:
                mixed = {
                    name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
                    for name, value in end.state_dict().items()
                }
                detector = copy.deepcopy(end)
                detector.load_state_dict(mixed)
                folder = self.folder / self.place / f"share={share:g}-{seed}"
                if not folder.exists():
                    calibrate_detector(detector, self.data.validation, output=folder)
                found.append((f"{share:.0%}", str(folder)))
        return self.scores(found, tests, "shares", ["energy"])

    def start_of(self, row: Row) -> str | None:
        """A digest of the classifier."""
        values = self.classifier.state_dict().values()
        return hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in values)).hexdigest()[:16]

    def load(self, place: str | Path) -> Detector:
        """As of the benchmark, with the classifier's code."""
        return load_detector(place, "cpu", self.classifier.network.own_module())


def with_judge(data: Data, output: Path, per_class: int, weights: Path) -> KeptBenchmark:
    """The benchmark of the judge as the classifier.

    It was trained on the ID images of the benchmark. So threshold and accuracy are watched on test images, which are
    then left out of the test.
    """
    calibration = of_each_class(data.test, 0, CALIBRATION_PER_CLASS)
    held_out = set(calibration.keys)
    rest = data.test.take([index for index, key in enumerate(data.test.keys) if key not in held_out])
    net = Judge(weights).requires_grad_(True)
    judge = as_detector(net, CLASSES, image_size=32, mean=(0, 0, 0), std=(1, 1, 1))  # its own are inside
    return KeptBenchmark(replace(data, validation=calibration, test=rest), output, per_class, judge, "kept")
