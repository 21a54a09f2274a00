import io
import json
import math
import re
import statistics

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from rich.console import Console
from sklearn.metrics import auc

from sona_pipeline.common.figures import MOST, roc_figure, scores_figure
from sona_pipeline.evaluation.report import summary, table, write_report
from sona_pipeline.evaluation.score_table import results_of

NASTY = r"[A&B]_50% $x^2$ {~} # a|b *c* \d"


def score_table(seed: int, shift: float = 1.0, covariate: bool = False) -> pd.DataFrame:
    """Random scores of an ID set, two near sets and a far one."""
    rng = np.random.default_rng(seed)
    parts = [("id", "id", 60, 0.0), ("near_ood", "fox", 40, shift), ("near_ood", "elk_1", 30, shift / 2)]
    parts += [("far_ood", "sky", 50, 2 * shift)] + [("covariate", "fog", 20, shift / 2)] * covariate
    tables = []
    for group, name, count, centre in parts:
        is_id = group in ("id", "covariate")
        columns = {"group": group, "set": name, "key": [f"{name}/{k}" for k in range(count)]}
        columns |= {"label": rng.integers(0, 2, count) if is_id else np.full(count, -1)}
        columns |= {"predicted": rng.integers(0, 2, count), "confidence": rng.uniform(0.5, 1, count)}
        tables.append(pd.DataFrame(columns | {score: rng.normal(centre, 1, count) for score in ("energy", "msp")}))
    return pd.concat(tables, ignore_index=True)


def results(table: pd.DataFrame, threshold: float | None = None) -> dict[str, dict]:
    return {score: results_of(table, score, threshold) for score in ("energy", "msp")}


@pytest.fixture(scope="module")
def tables() -> dict[str, list[pd.DataFrame]]:
    return {
        "SONA": [score_table(seed, 1.5, covariate=True) for seed in range(3)],
        NASTY: [score_table(9, 0.7, covariate=True)],
    }


@pytest.fixture(scope="module")
def runs(tables) -> list[tuple[str, dict]]:
    return [(method, results(table)) for method, some in tables.items() for table in some]


def number(found: pd.DataFrame, *where: str) -> pd.Series:
    """The one row of a summary with this method, score, spectrum, group, set and metric."""
    (row,) = found[(found.iloc[:, :6] == list(where)).all(axis=1)].to_dict("records")
    return row


def test_mean_and_deviation_over_seeds(runs):
    found = summary(runs)
    fox = [run["energy"]["near_ood"]["fox"]["auroc"] for _, run in runs[:3]]
    row = number(found, "SONA", "energy", "standard", "near_ood", "fox", "auroc")
    assert row["mean"] == pytest.approx(sum(fox) / 3)
    assert row["std"] == pytest.approx(math.sqrt(sum((x - sum(fox) / 3) ** 2 for x in fox) / 2))
    assert row["n"] == 3
    full = [run["msp"]["full_spectrum"]["far_ood"]["mean"]["fpr95"] for _, run in runs[:3]]
    row = number(found, "SONA", "msp", "full", "far_ood", "mean", "fpr95")
    assert (row["mean"], row["std"]) == pytest.approx((statistics.mean(full), statistics.stdev(full)))
    row = number(found, NASTY, "msp", "full", "covariate", "fog", "accuracy")
    assert row["mean"] == runs[3][1]["msp"]["full_spectrum"]["accuracy"]["fog"]
    assert row["std"] is None
    assert row["n"] == 1
    metrics_of_a_run = 2 * (1 + 5 * 4) + 1
    assert len(found) == 2 * 2 * metrics_of_a_run


def test_flagged_images_are_in_the_summary():
    run = results(score_table(0), threshold=1.0)
    row = number(summary([("SONA", run)]), "SONA", "energy", "standard", "id", "id", "flagged")
    assert row["mean"] == run["energy"]["id_flagged"] > 0


def test_flagged_images_are_of_the_runs_with_a_threshold_of_that_score():
    """Seeds may have chosen scores of their own."""
    one, other = results(score_table(0), threshold=1.0), results(score_table(1))
    found = summary([("SONA", one), ("SONA", other)])
    row = number(found, "SONA", "energy", "standard", "id", "id", "flagged")
    assert (row["mean"], row["std"], row["n"]) == (one["energy"]["id_flagged"], None, 1)
    row = number(found, "SONA", "energy", "standard", "id", "id", "accuracy")
    assert (row["mean"], row["n"]) == ((one["energy"]["id_accuracy"] + other["energy"]["id_accuracy"]) / 2, 2)


def test_runs_that_do_not_go_together_are_refused():
    other = score_table(1)
    with pytest.raises(ValueError, match="runs of 'SONA' with score 'energy' have different sets"):
        summary([("SONA", results(score_table(0))), ("SONA", results(other[other["set"] != "fox"]))])
    with pytest.raises(ValueError, match="nothing to report"):
        summary([])


def test_files_hold_the_summary_and_the_runs(runs, tables, tmp_path):
    found = write_report(tmp_path, runs, {name: some[0] for name, some in tables.items()})
    names = ["results.csv", "results.json", "results.md", "results.tex", "roc.png", "scores.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    again = pd.read_csv(tmp_path / "results.csv", dtype={"std": "Float64"})
    pd.testing.assert_frame_equal(again, found, check_dtype=False, rtol=1e-12)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [(run["method"], run["results"]) for run in content["runs"]] == runs
    assert [row["mean"] for row in content["summary"]] == found["mean"].tolist()
    assert {row["std"] for row in content["summary"] if row["n"] == 1} == {None}
    for name in ("roc.png", "scores.png"):
        assert min(Image.open(tmp_path / name).size) > 300


def test_results_without_ood_sets_have_no_roc_curves(tmp_path):
    known = score_table(0)
    known = known[known["group"] == "id"]
    write_report(tmp_path, [("SONA", results(known))], {"SONA": known})
    assert not (tmp_path / "roc.png").exists()
    accuracy = 100 * (known["label"] == known["predicted"]).mean()
    assert f"| SONA | energy | 1 | {accuracy:.2f} |" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_markdown_is_a_table_with_a_row_a_method_and_score(runs, tmp_path):
    write_report(tmp_path, runs, {})
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    standard, full = text.split("## ")[1:]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in standard.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 2 + 4
    head = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in rows[0]]
    sets = ("near-OOD fox", "near-OOD elk_1", "near-OOD mean", "far-OOD sky", "far-OOD mean")
    assert head[3:] == [f"{name} {metric}" for name in sets for metric in ("AUROC", "FPR@95")] + ["ID accuracy"]
    values = [run["energy"]["near_ood"]["fox"]["auroc"] for _, run in runs[:3]]
    assert rows[2][3].strip() == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert re.sub(r"\\(.)", r"\1", rows[4][0].strip()) == NASTY
    assert r"a\|b" in rows[4][0]
    assert "shifted fog accuracy" in full


def test_latex_is_balanced_and_special_characters_are_escaped(runs, tmp_path):
    write_report(tmp_path, runs, {})
    text = (tmp_path / "results.tex").read_text(encoding="utf-8")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    widths = {r"\multicolumn" in line: 0 for line in body}
    for line in body[:6]:
        spans = [int(width) for width in re.findall(r"\\multicolumn\{(\d)\}", line)]
        widths[bool(spans)] = len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans)
        assert widths[bool(spans)] == 3 + 5 * 2 + 1
    escaped = r"{[}A\&B]\_50\% \$x\textasciicircum{}2\$ \{\textasciitilde{}\} \# a|b *c* \textbackslash{}d"
    assert text.count(escaped) == 4
    assert r"elk\_1" in text
    assert re.search(r"\d\d\.\d\d \$\\pm\$ \d", text)
    assert text.count(r"\begin{tabular}{lll".replace("lll", "llr")) == text.count(r"\end{tabular}") == 2


def test_printed_table_has_every_set_method_and_score(runs):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table(summary([("[red]SONA[/red]", run) for _, run in runs[:3]])))
    text = console.export_text()
    fox = [run["msp"]["near_ood"]["fox"] for _, run in runs[:3]]
    cells = [
        f"{f([row[m] for row in fox]):.2f}" for m in ("auroc", "fpr95") for f in (statistics.mean, statistics.stdev)
    ]
    (line,) = [line for line in text.splitlines() if cells[0] in line and cells[2] in line]
    assert f"{cells[0]} ± {cells[1]}" in line
    assert f"{cells[2]} ± {cells[3]}" in line
    assert "[red]SONA[/red]" in text
    assert "near-OOD elk_1, full spectrum" in text
    assert text.count("│ msp ") == 5 + 1 + 5 + 1 + 1


def test_roc_curve_has_the_mean_auroc_of_the_sets_as_its_area():
    rng = np.random.default_rng(0)
    known, sets = rng.normal(0, 1, 400), [rng.normal(1, 1, 300), rng.normal(2, 2, 200)]
    axis = roc_figure({"near-OOD": {"SONA": (known, sets)}}).axes[0]
    x, y = axis.lines[0].get_data()
    pairs = [((o[:, None] > known).mean() + 0.5 * (o[:, None] == known).mean()) for o in sets]
    assert auc(x, y) / 100 == pytest.approx(100 * np.mean(pairs), abs=0.2)
    assert axis.get_legend().get_texts()[0].get_text() == f"SONA: {100 * np.mean(pairs):.1f}"


def test_pictures_stay_readable_with_many_methods_and_equal_scores():
    rng = np.random.default_rng(0)
    count = MOST + 3
    lines = {f"method {k}": (rng.normal(0, 1, 50), [rng.normal(k / 5, 1, 50)]) for k in range(count)}
    near, far = roc_figure({"near-OOD": lines, "far-OOD": dict(reversed(lines.items()))}).axes
    names = [text.get_text().split(":")[0] for text in near.get_legend().get_texts()]
    assert len(names) == MOST
    assert "method 0" not in names
    looks = [
        {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.lines} for axis in (near, far)
    ]
    assert looks[0] == looks[1]
    assert len(set(looks[0].values())) == MOST + 1
    panels = {f"method {k}": {"id": np.zeros(9), "fox": np.zeros(9)} for k in range(count)}
    figure = scores_figure(panels)
    assert [axis.get_title() for axis in figure.axes if axis.axison] == list(panels)[:MOST]
    assert figure.get_suptitle() == f"{MOST} of {count}"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["id", "fox"]
    assert to_rgb(figure.legends[0].get_lines()[0].get_color()) == (0, 0, 0)
