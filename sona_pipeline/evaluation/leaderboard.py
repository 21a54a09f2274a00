"""Rows for the leaderboard of OpenOOD, in the form that its branch `leaderboard` takes (`results/*.csv`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sona_pipeline.common.files import write_text
from sona_pipeline.detection.detector import Detector, training_record

FOLDER = "leaderboard"
COLUMNS = (
    *("Training", "Postprocessor", "Near-OOD_AUROC", "Far-OOD_AUROC", "ID_Accuracy", "Outlier_Data", "Arch"),
    "Additional_Description",
)
FILES = {
    "cifar10": {"standard": "cifar10.csv"},
    "cifar100": {"standard": "cifar100.csv"},
    "imagenet200": {"standard": "imagenet200_ood.csv", "full": "imagenet200_fsood.csv"},
    "imagenet": {"standard": "imagenet1k_ood.csv", "full": "imagenet1k_fsood.csv"},
}
"""The file of each benchmark and spectrum."""
POSTPROCESSORS = {
    "energy": "EBO",
    "max_logit": "MLS",
    "mahalanobis": "MDS",
    "mahalanobis_normalized": "MDS++",
    "mds_ensemble": "MDSEns",
    "rmd": "RMDS",
    "kl_matching": "KLM",
    "temperature_scaling": "TempScale",
    "ash_b": "ASH",
    "adascale_a": "AdaSCALE-A",
    "adascale_l": "AdaSCALE-L",
    "openmax": "OpenMax",
    "opengan": "OpenGAN",
    "react": "ReAct",
    "rankfeat": "RankFeat",
    "gradnorm": "GradNorm",
    "gram": "Gram",
    "fdbd": "fDBD",
    "nnguide": "NNGuide",
}
"""What the leaderboard calls our scores; the others are in capitals."""
_MADE = {"outlier_form", "outlier_content"}
"""What a training records of outliers that were made of its ID images."""
NETWORKS = {"resnet18": "ResNet18", "resnet20": "ResNet20", "resnet8": "ResNet8"}


@dataclass(frozen=True)
class Trained:
    """What the leaderboard asks about a detector.

    Attributes:
        training: what its training is called.
        outliers: whether it was trained on real outliers; None if that is not known.
        network: what its network is called.
        note: further words.
    """

    training: str
    outliers: bool | None
    network: str
    note: str


def described(name: str, detector: Detector, folder: str | Path | None) -> Trained:
    """A detector of the method `name`, by itself and by the training.json of its folder, if there is one.

    What was trained by cross-entropy alone is called "CrossEntropy", and all else as the method is called. Outliers
    that were made of the ID images do not count as outlier data.
    """
    record = training_record(folder) if folder is not None else {}
    network, outliers = detector.settings["network"], record.get("outliers")
    is_plain = record.get("method") == "oe" and outliers is None
    return Trained(
        training="CrossEntropy" if is_plain else name,
        outliers=(outliers is not None and not _MADE & record.keys()) if record else None,
        network=NETWORKS.get(network, network.partition(":")[2] or network),
        note=f"{record['epochs']} epochs" if record else "",
    )


def leaderboard_rows(found: pd.DataFrame, trained: Mapping[str, Trained], spectrum: str) -> pd.DataFrame:
    """A row a method and score.

    Args:
        found: what `evaluate_detectors` gives.
        trained: of each method.
        spectrum: "standard", or "full" where covariate-shifted images count as ID.
    """
    rows = []
    for (method, score), numbers in found[found["spectrum"] == spectrum].groupby(["method", "score"], sort=False):
        about = trained[method]
        cells = [_cell(numbers, group, metric) for group, metric in _WANTED]
        named = POSTPROCESSORS.get(score, score.upper())
        rows.append((about.training, named, *cells, _OUTLIERS[about.outliers], about.network, about.note))
    return pd.DataFrame(rows, columns=list(COLUMNS))


_OUTLIERS = {True: "Yes", False: "No", None: "/"}
_WANTED = (("near_ood", "auroc"), ("far_ood", "auroc"), ("id", "accuracy"))


def _cell(numbers: pd.DataFrame, group: str, metric: str) -> str:
    """Mean and standard deviation, with two digits; "/" where there is none."""
    name = "id" if group == "id" else "mean"
    chosen = numbers[(numbers["group"] == group) & (numbers["set"] == name) & (numbers["metric"] == metric)]
    if chosen.empty:
        return "/"
    mean, std = chosen.iloc[0][["mean", "std"]]
    return f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"


def write_leaderboard(found: pd.DataFrame, trained: Mapping[str, Trained], benchmark: str, folder: Path) -> None:
    """Write a file for each spectrum, named as on the leaderboard, with its head and our rows.

    Args:
        found: what `evaluate_detectors` gives.
        trained: of each method.
        benchmark: of `openood.BENCHMARKS`.
        folder: for the files.
    """
    for spectrum, file in FILES[benchmark].items():
        rows = leaderboard_rows(found, trained, spectrum)
        if len(rows):
            write_text(folder / file, rows.to_csv(index=False, lineterminator="\n"))
