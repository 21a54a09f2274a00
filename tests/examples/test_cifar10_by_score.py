"""Post-hoc scores side by side: differences, what a search took, and which scores a searched row has."""

import json
from pathlib import Path

import pandas as pd
import pytest
from benchmark_modules import modules_of

from sona_pipeline import POST_HOC

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks" / "cifar10"
FOUR = range(4)


@pytest.fixture(scope="module")
def bench():
    with modules_of(FOLDER) as modules:
        yield modules


def table_of(near: dict[str, float], parameters: dict[str, dict]) -> pd.DataFrame:
    """Four ID images with the scores 0 to 3, and four near-OOD images with the same and a shift for each score."""
    groups = ["id"] * 4 + ["near_ood"] * 4 + ["far_ood"] * 4
    columns = {"group": groups, "set": ["id"] * 4 + ["cifar100"] * 4 + ["mnist"] * 4, "key": [*map(str, range(12))]}
    scores = {name: [*FOUR, *(k + shift for k in FOUR), *(k + 10 for k in FOUR)] for name, shift in near.items()}
    table = pd.DataFrame(columns | {"label": [0] * 4 + [-1] * 8, "predicted": 0, "confidence": 1.0} | scores)
    table.attrs = {"thresholds": {}, "fits": {name: {"parameters": taken} for name, taken in parameters.items()}}
    return table


@pytest.fixture
def runs() -> dict[str, list[pd.DataFrame]]:
    """Two seeds of rows as in the table: `knn` has something to search, `rmd` has not."""
    default = {"knn": POST_HOC["knn"].defaults, "rmd": {}}
    taken = [{"knn": POST_HOC["knn"].defaults | {"k": k}} for k in (5, 10)]
    return {
        "cross-entropy": [table_of({"knn": 0.5, "rmd": -10.5, "energy": 0.5}, default)] * 2,
        "cross-entropy, searched": [table_of({"knn": 1.5}, one) for one in taken],
        "SONA": [table_of({"knn": 0.5, "rmd": 10.5, "energy": 10.5}, default)] * 2,
        "SONA, searched": [table_of({"knn": 10.5}, one) for one in taken],
    }


def test_scores_side_by_side_have_differences_of_pairs(bench, runs):
    near, far, parameters, claims = bench.by_score.describe_scores(bench.outcome.found_of(runs), runs)
    rows = near.rows.set_index("score")
    # of 16 pairs of an ID and an OOD image, 10 are in order with a shift of 0.5, and 13 with one of 1.5
    assert rows.loc["knn", "cross-entropy"] == "62.50 ± 0.00" and rows.loc["rmd", "SONA"] == "100.00 ± 0.00"
    assert rows.loc["knn", "cross-entropy, searched"] == "81.25 ± 0.00"
    assert rows.loc["rmd", "cross-entropy, searched"] == "-" == rows.loc["rmd", "search, SONA"]
    assert rows.loc["rmd", "SONA beside cross-entropy"] == "+100.0 (+100.0 to +100.0) *"
    assert rows.loc["knn", "SONA beside cross-entropy"] == "+0.0 (+0.0 to +0.0)"
    assert rows.loc["knn", "search, cross-entropy"].startswith("+18.8 (")
    assert rows.loc["rmd", "cross-entropy beside SONA by energy"] == "-100.0 (-100.0 to -100.0) *"
    assert rows.loc["knn", "cross-entropy beside SONA by energy"].startswith("-37.5 (")
    assert rows.loc["knn", "searched, beside SONA by energy"].startswith("-18.8 (")
    assert rows.loc["knn", "search, SONA"].startswith("+37.5 (")
    assert set(far.rows["SONA"]) == {"100.00 ± 0.00"} and near.file == "near-by-score.csv"
    assert parameters.rows["score"].tolist() == ["knn"]
    assert parameters.rows["SONA, searched"].item() == "k 5 / k 10"
    claimed = claims.rows.set_index("row")
    assert claimed.loc["KNN", "near-OOD, ours"] == "62.50 ± 0.00" and "81.57" in claimed.loc["KNN", "its own claim"]
    assert set(claimed.index) == {"KNN", "RMDS", "EBO"}


def test_rows_that_are_missing_leave_their_differences_out(bench, runs):
    few = {name: runs[name] for name in ("cross-entropy", "SONA")}
    near, _, parameters, _ = bench.by_score.describe_scores(bench.outcome.found_of(few), few)
    compared = ["SONA beside cross-entropy", "cross-entropy beside SONA by energy"]
    assert list(near.rows) == ["score", *few, *compared] and parameters.rows.empty


def test_a_searched_row_has_the_scores_that_a_search_can_change(bench, tmp_path):
    table = bench.rows.TABLES["post-hoc"]
    plain, searched = (table.rows[name] for name in ("SONA", "SONA, searched"))
    assert bench.benchmark.scores_of(table, plain) == ("all",)
    found = bench.benchmark.scores_of(table, searched)
    assert {"knn", "gen", "react"} <= set(found) < set(POST_HOC) and not {"rmd", "energy", "gram"} & set(found)
    bench_of_all = bench.benchmark.Benchmark(None, tmp_path, 2)
    kinds = [json.loads(bench_of_all.how_made(table, row)) for row in (plain, searched)]
    assert "search" not in kinds[0]["row"] and kinds[1]["row"]["search"] is True


def test_a_plot_of_many_scores_has_a_panel_a_group(bench, runs):
    figure = bench.outcome._figure({"test": bench.outcome.found_of(runs)})
    assert [axis.get_xlabel() for axis in figure.axes] == ["near AUROC in %", "far AUROC in %"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(reversed(runs))
    others = {"columns": ["rmd", "energy"], "errors": "ignore"}
    one = {name: [table.drop(**others) for table in tables] for name, tables in runs.items()}
    figure = bench.outcome._figure({"test": bench.outcome.found_of(one)})
    assert [axis.get_xlabel() for axis in figure.axes] == ["AUROC in %"]
