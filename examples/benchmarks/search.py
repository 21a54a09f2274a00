"""Post-hoc scores with and without a search of their parameters, on the bundled sample.

    python examples/benchmarks/search.py --output search

Some minutes on one core. The embedded detector, which was trained with SONA's outliers, stands beside detectors trained
by cross-entropy. Parameters are chosen by validation images: ID images, and real bags and sandals, of which the
embedded detector knows drawn ones. The table of the guide is in `examples/benchmarks/results/search`.
"""

from dataclasses import replace
from pathlib import Path

import cyclopts
import pandas as pd
from cyclopts.types import PositiveInt

from sona_pipeline import RECIPES, TINY_DETECTOR, TestSets, evaluate_detectors, sample, train_detector

SCORES = ("energy", "ash_b", "ash_s", "scale", "react", "vra", "gen", "odin", "fdbd", "nci", "knn", "dice", "vim")


def main(*, output: Path = Path("search"), seeds: PositiveInt = 3) -> None:
    """Train, evaluate twice, and write one table of mean AUROCs, `OUTPUT/search.csv`.

    Args:
        output: Folder for detectors and results.
        seeds: How many detectors by cross-entropy.
    """
    images, validation = sample.id_images("train"), sample.id_images("validation")
    detectors = [("SONA", str(TINY_DETECTOR))]
    for seed in range(seeds):
        folder = output / "detectors" / str(seed)
        train_detector(images, replace(RECIPES["small"], seed=seed), validation=validation, output=folder)
        detectors.append(("cross-entropy", str(folder)))
    sets = TestSets(sample.id_images("test"), sample.near_ood(), sample.far_ood())
    fits = {"fit_images": images, "validation_images": validation}
    found = {
        "defaults": evaluate_detectors(detectors, sets, output / "defaults", SCORES, **fits),
        "searched": evaluate_detectors(
            detectors, sets, output / "searched", SCORES, **fits, search_images=sample.real_outliers()
        ),
    }
    rows = pd.concat({name: part.set_index(["method", "score"]) for name, part in found.items()}, names=["parameters"])
    aurocs = rows[(rows["metric"] == "auroc") & (rows["set"] == "mean")].set_index("group", append=True)["mean"]
    table = aurocs.unstack(["method", "group", "parameters"]).loc[list(SCORES)].round(1)
    table.columns = [", ".join(column) for column in table.columns]
    table.to_csv(output / "search.csv", lineterminator="\n")
    print(table.to_string())


if __name__ == "__main__":
    cyclopts.run(main)
