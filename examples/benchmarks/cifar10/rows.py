"""The rows of the tables: which outliers, and how a detector is trained on them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from far_kinds import KINDS
from methods import RISING, SOFTER
from sets import Recipe

from sona_pipeline import stems

FEW_STEPS = [
    (name, title, steps)
    for name, title in (("ddim", "DDIM"), ("dpmsolver++", "DPM-Solver++"), ("unipc", "UniPC"), ("euler", "Euler"))
    for steps in (8, 10, 12, 25)
]
"""Schedulers as in `SCHEDULERS`, what they are called in a table, and steps."""
FEW = {"num_inference_steps": 12}
SYSTEM_STEPS = {"num_inference_steps": 25}
"""Of the outliers of all systems: half of the paper's, for what a search or an image by itself costs."""
SYSTEM_WAYS = {
    "SONA": "sona",
    "global guidance": "global",
    "text-to-image": "text",
    "DreamOOD": "dream",
    "SEGA": "sega",
    "LEDITS": "ledits",
    "DiffEdit": "diffedit",
    "OIR": "oir",
    "CutPaste": "cutpaste",
    "AutoAugOOD": "autoaug",
    "Fake-it": "fakeit",
}
"""Ways to make outliers that go with this model, by what tables call them."""
SETS = {
    **{
        f"{way}-25": Recipe(changes=SYSTEM_STEPS | {"way": way}, is_early=way == "fakeit")
        for way in SYSTEM_WAYS.values()
    },
    "sona": Recipe(),
    "text-to-image": Recipe(changes={"way": "text"}),
    "global": Recipe(changes={"way": "global"}),
    "text-to-image-12": Recipe(changes=FEW | {"way": "text"}, scheduler="unipc"),
    "global-12": Recipe(changes=FEW | {"way": "global"}, scheduler="unipc"),
    "strong-12": Recipe(changes=FEW | {"min_strength": 0.4}, scheduler="unipc"),
    "stronger-12": Recipe(changes=FEW | {"min_strength": 0.6}, scheduler="unipc"),
    "again-12": Recipe(changes=FEW | {"seed": 1000}, scheduler="unipc"),
    "classes-12": Recipe(changes=FEW | {"blend": "classes"}, scheduler="unipc"),
    "labels-12": Recipe(changes=FEW | {"blend": "labels"}, scheduler="unipc"),
    "scale-5-12": Recipe(changes=FEW | {"guidance_scale": 5.0}, scheduler="unipc"),
    "scale-5-lambda-0.4-12": Recipe(changes=FEW | {"guidance_scale": 5.0, "mask_threshold": 0.4}, scheduler="unipc"),
    "thresholding-12": Recipe(changes=FEW, scheduler="unipc", thresholding=True),
    "sega": Recipe(changes={"way": "sega"}, batch_size=10_000),
    "leditspp": Recipe(changes={"way": "leditspp"}, batch_size=10_000),
    "diffedit": Recipe(changes={"way": "diffedit"}),
    "cutpaste": Recipe(changes={"way": "cutpaste"}),
    "round-trips": Recipe(round_trips=True),
    "no-removal": Recipe(options={"remove_id_semantics": False}),
    "no-nuisance": Recipe(options={"preserve_id_nuisance": False}),
    "no-ood": Recipe(options={"add_ood_semantics": False}),
    "no-filter": Recipe(options={"filter_ood_by_nuisance": False}),
    **{f"stop-{step}": Recipe(stop_step=step) for step in (5, 15, 25, 35, 45)},
    **{f"scale-{scale:g}": Recipe(changes={"guidance_scale": scale}) for scale in (2.5, 5.0, 20.0)},
    **{f"lambda-{share:g}": Recipe(changes={"mask_threshold": share}) for share in (0.05, 0.1, 0.3, 0.4)},
    "close": Recipe(changes={"label_choice": "close"}),
    "far": Recipe(changes={"label_choice": "far"}),
    "free-text": Recipe(captions=True),
    "all": Recipe(changes={"mask_granularity": "all"}),
    "spatial": Recipe(changes={"mask_granularity": "spatial"}),
    "warm-up": Recipe(options={"warmup_steps": 10}),
    "momentum": Recipe(options={"momentum_scale": 0.3, "momentum_beta": 0.6}),
    **{
        f"{name}-{steps}": Recipe(changes={"num_inference_steps": steps}, scheduler=name)
        for name, _, steps in FEW_STEPS
    },
}
"""Outlier sets by the name of their folder."""
DISPENSABLE = ("sega", "leditspp", "diffedit", "fakeit-25")
"""Sets that a table goes on without: by pipelines that are not ours, which may not run on a model like this, and by a
model stopped early, which may not be there."""


@dataclass(frozen=True)
class Row:
    """A detector.

    Attributes:
        outliers: a name of `SETS`; "real" for real images of the OOD labels, as many; None for none.
        training: changes of the training settings.
        round_trips: whether VAE round trips of the ID images are trained on as ID images, where there is a set.
        is_fine_tuned: whether training starts from the weights of `pretrained.py`.
        score: that its paper judges it by, in a table where each row has its own.
        also: further names of `SETS`: each time an image is trained on, its outlier is drawn from one of the sets.
        reject: a name of `FILTERS`: outliers that it leaves out are not trained on.
        search: whether post-hoc scores have the parameters that are best on the validation images of held-out classes.
    """

    outliers: str | None
    training: dict[str, Any] = field(default_factory=dict)
    round_trips: bool = True
    is_fine_tuned: bool = False
    score: str | None = None
    also: tuple[str, ...] = ()
    reject: str | None = None
    search: bool = False

    @property
    def sets(self) -> list[str]:
        """Names of `SETS`."""
        return [name for name in (self.outliers, *self.also) if name in SETS]


@dataclass(frozen=True)
class Table:
    """Rows that are to be compared.

    Attributes:
        title: of the table.
        rows: by name.
        scores: that detectors are judged by; none where each row has its own.
        seeds: how many there are of each row, unless asked otherwise.
        far_validation: kinds of far-OOD validation images that choices are made by, too.
        baselines: rows that all others are compared with, with intervals.
        is_choice: whether it is for choices, so that test images have no part in it.
    """

    title: str
    rows: dict[str, Row]
    scores: tuple[str, ...] = ("energy",)
    seeds: int = 1
    far_validation: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    is_choice: bool = False

    def detectors(self, seeds: int) -> list[tuple[str, int, str]]:
        """Row, seed and name of the records of each detector, all rows of a seed before the next."""
        pairs = [(name, seed) for seed in range(seeds) for name in self.rows]
        return [(*pair, stem) for pair, stem in zip(pairs, stems([name for name, _ in pairs]))]

    def only(self, names: Collection[str]) -> Table:
        """The table with these rows and its baselines alone; all of it where none are named.

        Raises:
            ValueError: there is no such row.
        """
        if unknown := [name for name in names if name not in self.rows]:
            raise ValueError(f"the table has no row {unknown[0]!r}; its rows: {', '.join(self.rows)}")
        kept = {*names, *self.baselines} if names else self.rows
        return replace(self, rows={name: row for name, row in self.rows.items() if name in kept})


SHIPPED = ("clothing", "photos")
"""Kinds of far-OOD images that come with the package."""
CROSS_ENTROPY = Row(None)
SONA = Row("sona")
NEAR_TEST = "near-test"
"""The table with outliers of test images for its test sets."""
REMEDIES_TABLE, KEPT, KEPT_FEATURES = "remedies", "kept", "kept-efficientnet"
SYSTEMS_TABLE, POST_HOC_TABLE = "systems", "post-hoc"
ANY_STRENGTH = {"min_strength": 0.0}
SHIPPED_RECIPE = {"outlier_augmentation": "strong"}
KEPT_ROWS = {
    "as it is": Row(None, {"epochs": 0}),
    "fine-tuned without outliers": Row(None),
    "fine-tuned with real outliers": Row("real"),
    "fine-tuned with SONA": Row("unipc-12"),
}
"""Of a classifier that is kept, by the recipe 'finetune'."""
FAST = Row("unipc-12", SHIPPED_RECIPE)
"""SONA as shipped."""
FEATURES = 128.0
"""D of ResNet-8, by which the mutual information is divided: as gamma, it takes that back."""


def fast_with(**training: Any) -> Row:
    """SONA as shipped, with other training settings."""
    return replace(FAST, training=SHIPPED_RECIPE | training)


TABLES = {
    "detectors": Table(
        "Detectors (the paper's tables 1 and 4)",
        {
            "cross-entropy": CROSS_ENTROPY,
            "cross-entropy, with round trips": Row("sona", {"outlier_weight": 0.0, "mi_weight": 0.0}),
            "OE, real outliers": Row("real"),
            "OE, SONA": Row("sona", {"mi_weight": 0.0}),
            "OE + MI, SONA": SONA,
        },
        seeds=3,
        baselines=("cross-entropy",),
    ),
    POST_HOC_TABLE: Table(
        "Post-hoc scores (table 1)",
        {
            "cross-entropy": CROSS_ENTROPY,
            "cross-entropy, searched": Row(None, search=True),
            "SONA": Row("sona-25"),
            "SONA, searched": Row("sona-25", search=True),
        },
        scores=("all",),
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
    ),
    REMEDIES_TABLE: Table(
        "Scores that SONA loses with, and remedies",
        {"cross-entropy": CROSS_ENTROPY, "OE, real outliers": Row("real"), "OE + MI, SONA": SONA},
        scores=(
            *("energy", "mahalanobis", "mahalanobis_normalized", "multi_mahalanobis", "multi_mahalanobis_normalized"),
            *("kl_matching", "kl_matching_sharp", "ash_s", "ash_pruned", "scale", "gram", "knn", "energy_and_knn"),
        ),
        seeds=3,
        far_validation=SHIPPED,
    ),
    "ways": Table(
        "Other ways to make outliers (tables 3, 8 and 9)",
        {
            "SONA": SONA,
            "text-to-image": Row("text-to-image"),
            "global guidance": Row("global"),
            "SEGA": Row("sega"),
            "LEDITS++": Row("leditspp"),
            "DiffEdit": Row("diffedit"),
            "CutPaste": Row("cutpaste"),
            "round trips as outliers": Row("round-trips", round_trips=False),
        },
        seeds=3,
    ),
    "terms": Table(
        "Terms of the guidance (table 3)",
        {
            "SONA": SONA,
            "ID semantics stay": Row("no-removal"),
            "no term for the nuisance": Row("no-nuisance"),
            "no OOD semantics": Row("no-ood"),
            "no nuisance filter": Row("no-filter"),
        },
    ),
    "stop-step": Table(
        "Stop step (figure 6), outliers of any strength trained on",
        {"random": Row("sona", ANY_STRENGTH)}
        | {str(step): Row(f"stop-{step}", ANY_STRENGTH) for step in (5, 15, 25, 35, 45)},
    ),
    "scale": Table(
        "Guidance scale s and share lambda of the regions (figure 7)",
        {"s 10, lambda 0.2": SONA}
        | {f"s {scale:g}": Row(f"scale-{scale:g}") for scale in (2.5, 5.0, 20.0)}
        | {f"lambda {share:g}": Row(f"lambda-{share:g}") for share in (0.05, 0.1, 0.3, 0.4)},
    ),
    "labels": Table(
        "OOD labels (table 2)",
        {"random": SONA, "close": Row("close"), "far": Row("far"), "free text": Row("free-text")},
    ),
    "masks": Table(
        "Granularity of the masks, and SEGA's options",
        {
            "share of each channel": SONA,
            "share of all entries": Row("all"),
            "one mask for all channels": Row("spatial"),
            "warm-up of 10 steps": Row("warm-up"),
            "momentum 0.3, beta 0.6": Row("momentum"),
        },
    ),
    "mutual-information": Table(
        "Weight of the mutual information (table 4)",
        {
            "OE, SONA": Row("sona", {"mi_weight": 0.0}),
            "OE + MI, SONA": SONA,
            "MI at the literal weight": Row("sona", {"mi_weight": FEATURES}),
        },
        seeds=3,
    ),
    "round-trips": Table(
        "Round trips of the ID images as ID images",
        {"with": SONA, "without": Row("sona", round_trips=False)},
        baselines=("with",),
    ),
    "more-data": Table(
        "As the data grow",
        {
            "cross-entropy": CROSS_ENTROPY,
            "SONA": FAST,
            "SONA, as in the paper": Row("sona", ANY_STRENGTH),
            "text-to-image": Row("text-to-image-12", SHIPPED_RECIPE),
            "global guidance": Row("global-12", SHIPPED_RECIPE),
            "OE, real outliers": Row("real", SHIPPED_RECIPE),
        },
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
        baselines=("cross-entropy", "SONA"),
    ),
    "worth": Table(
        "What makes outliers worth more",
        {
            "SONA": FAST,
            "cross-entropy": CROSS_ENTROPY,
            "real outliers": Row("real", SHIPPED_RECIPE),
            "50 DDIM steps": Row("sona", SHIPPED_RECIPE),
            "text-to-image": Row("text-to-image-12", SHIPPED_RECIPE),
            "half text-to-image": replace(FAST, also=("text-to-image-12",)),
            "half between two ID classes": replace(FAST, also=("classes-12",)),
            "half between a label and an ID class": replace(FAST, also=("labels-12",)),
            "two outliers an image": replace(FAST, also=("again-12",)),
            "guidance scale 5": Row("scale-5-12", SHIPPED_RECIPE),
            "guidance scale 5, lambda 0.4": Row("scale-5-lambda-0.4-12", SHIPPED_RECIPE),
            "dynamic thresholding": Row("thresholding-12", SHIPPED_RECIPE),
            "all from strength 0.4 on": Row("strong-12", SHIPPED_RECIPE),
            "all from strength 0.6 on": Row("stronger-12", SHIPPED_RECIPE),
            "strength from 0.6 on": fast_with(min_strength=0.6),
            "strength from 0.8 on": fast_with(min_strength=0.8),
            "any strength": fast_with(**ANY_STRENGTH),
            "strength from 0.2 on": fast_with(min_strength=0.2),
            "no augmentation of outliers": Row("unipc-12"),
            "any strength, no augmentation": Row("unipc-12", ANY_STRENGTH),
            "beta 0.25": fast_with(outlier_weight=0.25),
            "beta 1": fast_with(outlier_weight=1.0),
            "beta rising from 0 to 1": fast_with(method=RISING),
            "softer targets, any strength": fast_with(method=SOFTER, **ANY_STRENGTH),
            "z-scored features": fast_with(feature_scale=0.5),
            "energy margins": fast_with(method="energy"),
            "no mutual information": fast_with(mi_weight=0.0),
            "mutual information at the literal weight": fast_with(mi_weight=FEATURES),
            "filter of RODEO": replace(FAST, reject="rodeo"),
            "filter of Bad-OOD": replace(FAST, reject="bad-ood"),
            "two outliers and a third text-to-image, strength from 0.2 on": replace(
                fast_with(min_strength=0.2), also=("again-12", "text-to-image-12")
            ),
        },
        scores=("energy", "knn", "energy_and_knn"),
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
        baselines=("SONA",),
        is_choice=True,
    ),
    KEPT: Table(
        "A classifier of 93 % that others trained, kept",
        KEPT_ROWS,
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
        baselines=("as it is",),
    ),
    KEPT_FEATURES: Table(
        "A classifier with the features of ImageNet, kept",
        KEPT_ROWS,
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
        baselines=("as it is",),
    ),
    "fine-tuned": Table(
        "A network with the features of ImageNet, fine-tuned at 224 px",
        {
            "cross-entropy": Row(None, is_fine_tuned=True),
            "OE, real outliers": Row("real", SHIPPED_RECIPE, is_fine_tuned=True),
            "SONA": Row("unipc-12", SHIPPED_RECIPE, is_fine_tuned=True),
        },
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
        baselines=("cross-entropy",),
    ),
    SYSTEMS_TABLE: Table(
        "Every system on equal terms",
        {
            "cross-entropy": Row(None, score="energy"),
            "OE, real outliers": Row("real", score="msp"),
            "MCD, real outliers": Row("real", {"method": "mcd"}, score="mcd"),
            "UDG, real outliers": Row("real", {"method": "udg"}, score="msp"),
            "MixOE, real outliers": Row("real", {"method": "mixoe"}, score="msp"),
            "VOS": Row(None, {"method": "vos"}, score="energy"),
            "CIDER": Row(None, {"method": "cider"}, score="knn"),
            "NPOS": Row(None, {"method": "npos"}, score="knn"),
            "ASCOOD": Row(None, {"method": "ascood", "feature_scale": 0.5}, score="odin"),
        }
        | {title: Row(f"{way}-25", score="energy") for title, way in SYSTEM_WAYS.items()},
        scores=(),
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
        baselines=("SONA",),
    ),
    "filters": Table(
        "Filters of other methods, and margins between energies",
        {
            "cross-entropy": CROSS_ENTROPY,
            "SONA": Row("sona-25"),
            "filter of RODEO": Row("sona-25", reject="rodeo"),
            "filter of Bad-OOD": Row("sona-25", reject="bad-ood"),
            "filter of GCOS": Row("sona-25", reject="gcos"),
            "filter of GCOS, no mutual information": Row("sona-25", {"mi_weight": 0.0}, reject="gcos"),
            "energy margins": Row("sona-25", {"method": "energy"}),
        },
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
        baselines=("SONA",),
    ),
    "other-scores": Table(
        "Systems with other scores than their papers', and after more epochs",
        {
            "cross-entropy": CROSS_ENTROPY,
            "cross-entropy, 100 epochs": Row(None, {"epochs": 100}),
            "OE, real outliers": Row("real"),
            "MCD, real outliers": Row("real", {"method": "mcd"}),
            "UDG, real outliers": Row("real", {"method": "udg"}),
            "MixOE, real outliers": Row("real", {"method": "mixoe"}),
            "CIDER": Row(None, {"method": "cider"}),
            "CIDER, 100 epochs": Row(None, {"method": "cider", "epochs": 100}),
            "NPOS": Row(None, {"method": "npos"}),
            "SONA": Row("sona-25"),
        },
        scores=("energy", "msp", "rmd", "knn"),
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
        baselines=("cross-entropy",),
        is_choice=True,
    ),
    NEAR_TEST: Table(
        "SONA outliers of test images as a near-OOD test set (table 10)",
        {"cross-entropy": CROSS_ENTROPY, "OE, real outliers": Row("real"), "SONA": Row("sona-25")},
        scores=("energy", "msp", "knn"),
        seeds=3,
    ),
    "steps": Table(
        "Fewer steps",
        {"50 DDIM steps": SONA}
        | {f"{steps} {title} steps": Row(f"{name}-{steps}") for name, title, steps in FEW_STEPS},
        seeds=3,
        far_validation=(*SHIPPED, *KINDS),
    ),
}
