"""What the score energy+knn gains over the energy, and loses where few neighbours are kept, on the bundled sample.

    python examples/benchmarks/neighbours.py --output neighbours

Some minutes on one core. The embedded detector, which was trained with SONA's outliers, stands beside detectors trained
by cross-entropy. The table of the guide is in `examples/benchmarks/results/neighbours`.
"""

from dataclasses import replace
from pathlib import Path

import cyclopts
import pandas as pd
from cyclopts.types import PositiveInt

from sona_pipeline import (
    RECIPES,
    TINY_DETECTOR,
    TestSets,
    keep_neighbours,
    load_detector,
    results_of,
    sample,
    score_images,
    train_detector,
)

SHARES = (1, 4, 16)
"""One training image in so many is kept; the table says how many, and which neighbour counts."""


def main(*, output: Path = Path("neighbours"), seeds: PositiveInt = 3) -> None:
    """Train, score, and write one table of mean AUROCs, `OUTPUT/neighbours.csv`.

    Args:
        output: Folder for detectors and the table.
        seeds: How many detectors by cross-entropy, and draws of neighbours of the embedded one.
    """
    images, validation = sample.id_images("train"), sample.id_images("validation")
    sets = TestSets(sample.id_images("test"), sample.near_ood(), sample.far_ood())
    rows: list[dict] = []
    for seed in range(seeds):
        folder, settings = output / "detectors" / str(seed), replace(RECIPES["small"], seed=seed)
        plain = train_detector(images, settings, validation=validation, output=folder)
        for method, detector in (("SONA", load_detector(TINY_DETECTOR)), ("cross-entropy", plain)):
            for share in SHARES:
                limit = 2 * detector.network.head.in_features * (len(images) // share)
                kept = keep_neighbours(detector, images, validation, seed=seed, limit=limit)
                table = score_images(kept, sets, ["energy", "energy+knn"])
                names = {"energy": "energy"} if share == 1 else {}
                names["energy+knn"] = f"energy+knn, {len(kept.neighbours)} kept, number {kept.nearest}"
                rows += [{"method": method, "score": name, **aurocs(table, score)} for score, name in names.items()]
    found = pd.DataFrame(rows).groupby(["method", "score"], sort=False)
    table = pd.concat({"mean": found.mean(), "std": found.std()}, axis=1).round(2)
    table.columns = [f"{group}, {what}" for what, group in table.columns]
    table.to_csv(output / "neighbours.csv", lineterminator="\n")
    print(table.to_string())


def aurocs(table: pd.DataFrame, score: str) -> dict[str, float]:
    """Mean AUROC over the sets of each group, in percent."""
    results = results_of(table, score)
    return {name: results[f"{name}_ood"]["mean"]["auroc"] for name in ("near", "far")}


if __name__ == "__main__":
    cyclopts.run(main)
