"""What stands for a row and a column of the paper's tables in our results."""

from pathlib import Path
from typing import NamedTuple

SYSTEMS = Path(__file__).parents[2] / "full_size" / "systems.txt"


class Ours(NamedTuple):
    """A row of results: the table of the CIFAR-10 benchmark, its row, and the score."""

    table: str
    row: str
    score: str = "energy"


COLUMNS = {
    "near-OOD": ("near_ood", "mean", "auroc"),
    "far-OOD": ("far_ood", "mean", "auroc"),
    "ID accuracy": ("id", "id", "accuracy"),
    "SSB-hard": ("near_ood", "ssb_hard", "auroc"),
    "NINCO": ("near_ood", "ninco", "auroc"),
    "iNaturalist": ("far_ood", "inaturalist", "auroc"),
    "Textures": ("far_ood", "textures", "auroc"),
    "OpenImage-O": ("far_ood", "openimage_o", "auroc"),
    "TIN": ("near_ood", "tin", "auroc"),
    "MNIST": ("far_ood", "mnist", "auroc"),
    "SVHN": ("far_ood", "svhn", "auroc"),
    "Places365": ("far_ood", "places365", "auroc"),
    "SONA images": ("near_ood", "SONA", "auroc"),
}
"""Group, set and metric; the sets have the names of OpenOOD's benchmarks."""
SCORES = {
    "OpenMax": "openmax",
    "MSP": "msp",
    "TempScale": "temperature_scaling",
    "ODIN": "odin",
    "MDS": "mahalanobis",
    "MDSEns": "mds_ensemble",
    "RMDS": "rmd",
    "Gram": "gram",
    "EBO": "energy",
    "OpenGAN": "opengan",
    "GradNorm": "gradnorm",
    "ReAct": "react",
    "MLS": "max_logit",
    "KLM": "kl_matching",
    "VIM": "vim",
    "KNN": "knn",
    "DICE": "dice",
}
"""Post-hoc scores of the cross-entropy baseline by the names that the paper has for them."""
_POST_HOC = {name: Ours("post-hoc", "cross-entropy", score) for name, score in SCORES.items()}
_SYSTEMS = {
    "OE": "OE, real outliers",
    "MCD": "MCD, real outliers",
    "UDG": "UDG, real outliers",
    "MixOE": "MixOE, real outliers",
    **{name: name for name in ("VOS", "CIDER", "NPOS", "DreamOOD", "SONA", "DiffEdit", "SEGA", "OIR", "CutPaste")},
    "LEdits": "LEDITS",
    "AutoAugOOD": "AutoAugOOD",
    "Fake-it": "Fake-it",
}
_OF_SYSTEMS = {name: Ours("systems", row, "own") for name, row in _SYSTEMS.items()}
OURS: dict[str, dict[str, Ours]] = {
    "1": _POST_HOC | _OF_SYSTEMS,
    "2": {name: Ours("labels", name) for name in ("random", "close", "far")} | {"LAION": Ours("labels", "free text")},
    "3": {
        "global guidance": Ours("ways", "global guidance"),
        "D_ID + D_OOD": Ours("terms", "no term for the nuisance"),
        "D_ID + D_OOD + D_N": Ours("terms", "SONA"),
    },
    "4": {
        "CE": Ours("detectors", "cross-entropy"),
        "CE + OE": Ours("detectors", "OE, SONA"),
        "CE + OE + MI": Ours("detectors", "OE + MI, SONA"),
    },
    "5": _POST_HOC | _OF_SYSTEMS,
    "6": _POST_HOC | _OF_SYSTEMS,
    "7": {"MSP": _POST_HOC["MSP"], "EBO": _POST_HOC["EBO"], "KNN": _POST_HOC["KNN"], "SONA": _OF_SYSTEMS["SONA"]},
    "8": _OF_SYSTEMS,
    "9": _OF_SYSTEMS,
    "10": {name: Ours("near-test", "cross-entropy", SCORES[name]) for name in ("MSP", "EBO", "KNN")}
    | {"OE": Ours("near-test", "OE, real outliers", "msp")},
}
"""Rows that stand for rows of the paper; the others have none yet."""
SMALL_ONLY = ("near-OOD", "far-OOD", "ID accuracy", "SONA images")
"""Columns that the CIFAR-10 benchmark has as well: the other columns are single sets of other benchmarks."""


def of_full_size(row: str) -> Ours:
    """What stands for a row of the paper in a full-size run: a detector of that name, by the score of its paper."""
    lines = [line.split() for line in SYSTEMS.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    return Ours("", row, {name.replace("_", " "): score for name, _, score, *_ in lines}.get(row, "energy"))
