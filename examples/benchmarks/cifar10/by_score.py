"""Post-hoc scores side by side: two kinds of detectors, each by default parameters and by those of a search."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from claims import PAPER, describe_claims
from outcome import WORDS, Column, Part, means_of

from sona_pipeline import POST_HOC, compare, score_columns, with_spread

PAIRS = {
    "SONA beside cross-entropy": ("SONA", "cross-entropy"),
    "search, cross-entropy": ("cross-entropy, searched", "cross-entropy"),
    "search, SONA": ("SONA, searched", "SONA"),
}
"""Differences by the same score: a row, and the row that it is compared with."""
OURS, OUR_SCORE = "SONA", "energy"
RIVALS = {
    "cross-entropy beside SONA by energy": "cross-entropy",
    "searched, beside SONA by energy": "cross-entropy, searched",
}
"""Rows of which every score is compared with `OURS` by `OUR_SCORE`."""
SEARCHED = "searched"
NOTE = """Test images, AUROC in %, mean ± standard deviation over the seeds. The last columns are paired differences
with 95 % intervals (2,000 resamples of images and seeds); "*" is an interval without zero. A search takes the
parameters of the highest AUROC on the validation images of held-out classes, detector by detector; "-": there is
nothing to search, or no such score."""
PARAMETERS_NOTE = "What the search took, by seed; the parameters that it does not try stay as they are."
Runs = Mapping[str, Sequence[pd.DataFrame]]
"""Scores of `score_images` by row, a table a seed."""


def describe_scores(found: pd.DataFrame, scores: Runs) -> list[Part]:
    """A table of near-OOD and one of far-OOD AUROC with a row a score, the best first; what searches took; claims.

    Args:
        found: the results on test images.
        scores: on test images.
    """
    differences = {
        title: compare({row: scores[row] for row in pair}, pair[1])
        for title, pair in PAIRS.items()
        if {*pair} <= {*scores}
    }
    differences |= {
        title: _beside_ours(scores[row], scores[OURS]) for title, row in RIVALS.items() if {row, OURS} <= {*scores}
    }
    parts = [_of_group(group, found, differences) for group in ("near_ood", "far_ood")]
    return [*parts, _parameters(scores), describe_claims(_as_systems(found))]


def _beside_ours(tables: Sequence[pd.DataFrame], ours: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Every score of some detectors less our score of ours, with the name of the score in the column of that name."""
    rivals = {name: [_only(table, name) for table in tables] for name in score_columns(tables[0])}
    found = compare(rivals | {OURS: [_only(table, OUR_SCORE) for table in ours]}, OURS)
    return found.assign(score=found["method"])


def _only(table: pd.DataFrame, score: str) -> pd.DataFrame:
    """The table with one score, which is called "score"."""
    others = [name for name in score_columns(table) if name != score]
    return table.drop(columns=others).rename(columns={score: "score"})


def _of_group(group: str, found: pd.DataFrame, differences: Mapping[str, pd.DataFrame]) -> Part:
    means = means_of(found, Column("test", group, "auroc"))
    best = means.groupby("score")["mean"].max().sort_values(ascending=False)
    cells: dict[str, dict[str, str]] = {name: {"score": name} for name in best.index}
    for row in means.itertuples():
        cells[row.score][row.method] = with_spread(row.mean, row.std)
    for title, table in differences.items():
        is_mean = (table["group"] == group) & (table["set"] == "mean") & (table["metric"] == "auroc")
        for row in table[is_mean].itertuples():
            sign = "" if row.verdict == "level" else " *"
            cells[row.score][title] = f"{row.difference:+.1f} ({row.low:+.1f} to {row.high:+.1f}){sign}"
    rows = pd.DataFrame(cells.values()).fillna("-")
    return Part(f"{WORDS[group].capitalize()}-OOD AUROC by score", NOTE, rows, f"{WORDS[group]}-by-score.csv")


def _as_systems(found: pd.DataFrame) -> pd.DataFrame:
    """The results of cross-entropy, with scores as methods, by the names that papers have for them."""
    systems = pd.read_csv(PAPER / "systems.csv")
    titles = systems[systems["kind"] == "score"].set_index("name")["system"].dropna()
    plain = found[(found["method"] == "cross-entropy") & found["score"].isin(titles.index)]
    return plain.assign(method=plain["score"].map(titles))


def _parameters(scores: Runs) -> Part:
    cells: dict[str, dict[str, str]] = {}
    for row, tables in scores.items():
        if SEARCHED in row:
            for name in tables[0].attrs["fits"]:
                taken = [_tried(name, table.attrs["fits"][name]["parameters"]) for table in tables]
                cells.setdefault(name, {"score": name, "default": _text(_tried(name, POST_HOC[name].defaults))})
                cells[name][row] = " / ".join(map(_text, taken))
    return Part("Parameters", PARAMETERS_NOTE, pd.DataFrame(cells.values()).fillna("-"), "parameters.csv")


def _tried(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: parameters[key] for key in POST_HOC[name].grid}


def _text(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in parameters.items())
