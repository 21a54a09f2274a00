"""The paper's tables beside ours: the figures are copied rightly, and each row of ours is found where it lies."""

import importlib.util
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from benchmark_modules import modules_of
from warm_python import package_python

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"
FIGURES = pd.read_csv(FOLDER / "paper" / "figures.csv", dtype={"table": str})


@pytest.mark.parametrize("number", ["1", "6"])
def test_the_means_of_the_paper_are_those_of_its_sets(number):
    """All but those of EBO and OpenGAN in table 1, where the paper's own sets do not give its mean."""
    table = FIGURES[FIGURES["table"] == number].pivot(index="row", columns="column", values="value")
    table = table.drop(index=["EBO", "OpenGAN"] if number == "1" else [])
    near = table[["SSB-hard", "NINCO"]].mean(axis=1)
    far = table[["iNaturalist", "Textures", "OpenImage-O"]].mean(axis=1)
    assert (near - table["near-OOD"]).abs().max() < 0.03
    assert (far - table["far-OOD"]).abs().max() < 0.03


def test_figures_that_stand_in_several_tables_are_the_same():
    sona = FIGURES[(FIGURES["row"].isin(["SONA", "random", "CE + OE + MI", "D_ID + D_OOD + D_N"]))]
    near = sona[(sona["column"] == "near-OOD") & sona["table"].isin(["1", "2", "3", "4", "8"])]
    assert set(near["value"]) == {88.38} and len(near) == 5
    assert FIGURES["table"].nunique() == 10 and not FIGURES.duplicated(["table", "row", "column"]).any()


@pytest.fixture
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("paper.tables")


def test_every_row_is_of_a_table_that_there_is(tables):
    with modules_of(FOLDER / "cifar10") as benchmark:
        known = benchmark.rows.TABLES
        for number, rows in tables.OURS.items():
            in_paper = set(FIGURES[FIGURES["table"] == number]["row"])
            for row, ours in rows.items():
                if row in in_paper:
                    assert ours.row in known[ours.table].rows, (number, row)


def results(folder, rows, *more):
    names = ["method", "score", "spectrum", "group", "set", "metric", "mean", "std", *more]
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=names).to_csv(folder / "results.csv", index=False)


def test_ours_stand_beside_the_papers(tables, tmp_path):
    results(
        tmp_path / "detectors",
        [
            ("cross-entropy", "energy", "standard", "near_ood", "mean", "auroc", 70.126, 1.5),
            ("cross-entropy", "energy", "standard", "id", "id", "accuracy", 60.0, 1.0),
            ("OE, SONA", "energy", "standard", "near_ood", "mean", "auroc", 80.0, None),
        ],
    )
    found = tables.paper_table("4", "small", tmp_path).set_index("row")
    assert found.loc["CE", "near-OOD, paper"] == "82.50" and found.loc["CE", "near-OOD, ours"] == "70.13 ± 1.50"
    assert found.loc["CE + OE", "near-OOD, ours"] == "80.00" and found.loc["CE + OE + MI", "near-OOD, ours"] == "-"
    assert tables.shown(found.reset_index()) == ["row", "near-OOD, paper", "near-OOD, ours"]


def test_the_table_of_sona_images_has_the_test_of_these(tables, tmp_path):
    rows = [
        ("cross-entropy", score, "standard", "near_ood", name, "auroc", mean, 0.5, name)
        for score, by_set in {"msp": (60, 50), "energy": (61, 51), "knn": (62, 52)}.items()
        for name, mean in zip(("SONA", "SONA from strength 0.4 on"), by_set)
    ]
    results(tmp_path / "near-test", rows, "test")
    found = tables.paper_table("10", "small", tmp_path).set_index("row")
    assert found.loc[["MSP", "EBO", "KNN"], "SONA images, ours"].tolist() == [f"{k}.00 ± 0.50" for k in (60, 61, 62)]
    assert found.loc["OE", "SONA images, ours"] == "-"


def test_a_full_size_run_has_the_names_of_the_paper(tables, tmp_path):
    rows = [
        ("cross-entropy", "msp", "standard", "near_ood", "ssb_hard", "auroc", 80.0, 0.5),
        ("cross-entropy", "msp", "full", "near_ood", "ssb_hard", "auroc", 50.0, 0.5),
        ("SONA", "energy", "standard", "far_ood", "textures", "auroc", 95.0, 0.1),
        ("OE", "energy", "standard", "near_ood", "mean", "auroc", 80.0, 0.1),
        ("OE", "msp", "standard", "near_ood", "mean", "auroc", 84.0, 0.1),
    ]
    results(tmp_path / "run", rows)
    first, sixth = (tables.paper_table(n, "imagenet200", tmp_path / "run").set_index("row") for n in ("1", "6"))
    assert first.loc["MSP", "SSB-hard, ours"] == "80.00 ± 0.50" and sixth.loc["MSP", "SSB-hard, ours"] == "50.00 ± 0.50"
    assert first.loc["SONA", "Textures, ours"] == "95.00 ± 0.10" and first.loc["OE", "near-OOD, ours"] == "84.00 ± 0.10"
    assert first.loc["MCD", "near-OOD, ours"] == "-"


@pytest.fixture
def command(tables):
    spec = importlib.util.spec_from_file_location("paper_tables_command", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("number", range(1, 11))
def test_every_table_is_printed(command, number, tmp_path, capsys):
    command(f"table-{number}", output=tmp_path / "table.csv")
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Table {number}: " in printed and "another scale" in printed
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) == FIGURES[FIGURES["table"] == str(number)]["row"].nunique()
    has_ours = (table.filter(like=", ours") != "-").any().any()
    assert has_ours == (str(number) not in "67")  # which are of shifted images and of birds


def test_the_command_takes_a_table_and_a_full_size_one_needs_results():
    line = [package_python(), str(FOLDER / "run.py"), "table-1", "--scale", "imagenet200"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode != 0 and "give --results" in done.stderr


def test_results_that_are_not_there_are_told(command, tmp_path):
    with pytest.raises(SystemExit, match="nowhere is not there: give the folder of the results"):
        command("table-1", results=tmp_path / "nowhere")
