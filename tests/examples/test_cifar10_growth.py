"""The plot of what is found with more and more data has the numbers of the tables."""

from pathlib import Path

import pandas as pd
import pytest
from benchmark_modules import modules_of

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks" / "cifar10"


@pytest.fixture(scope="module")
def bench():
    with modules_of(FOLDER) as modules:
        yield modules


def table(**near: float) -> pd.DataFrame:
    rows = [("test", name, "near_ood", "mean", "auroc", value, 1.5) for name, value in near.items()]
    rows += [("validation", name, "near_ood", "mean", "auroc", 1.0, None) for name in near]
    rows += [("test", name, "id", "id", "accuracy", 70.0, None) for name in near]
    return pd.DataFrame(rows, columns=["test", "method", "group", "set", "metric", "mean", "std"])


def lines(axis) -> dict[str, tuple[list, list]]:
    return {
        bars.get_label(): (list(bars.lines[0].get_xdata()), list(bars.lines[0].get_ydata())) for bars in axis.containers
    }


def test_lines_have_the_means_of_the_test_images(bench):
    figure = bench.growth.growth_figure({3000: table(ce=75.0, sona=80.0), 12000: table(ce=78.0)})
    near, far, accuracy = figure.axes
    assert lines(near) == {"ce": ([3000, 12000], [75.0, 78.0]), "sona": ([3000], [80.0])}
    assert lines(far) == {"ce": ([], []), "sona": ([], [])}
    assert lines(accuracy)["ce"] == ([3000, 12000], [70.0, 70.0])
    assert near.get_title() == "near-OOD AUROC in %"


def test_command_reads_the_tables_of_all_sizes(bench, tmp_path, capsys):
    for folder, value in (("more-data", 75.0), ("more-data-1200", 78.0)):
        (tmp_path / folder).mkdir()
        table(ce=value).to_csv(tmp_path / folder / "results.csv", index=False)
    sizes = ["--per-class", "1200", "--per-class", "300"]
    command = ["growth", "more-data", *sizes, "--results", str(tmp_path)]
    bench.run.app(command, exit_on_error=False, result_action="return_value")
    assert (tmp_path / "more-data" / "growth.png").stat().st_size > 5000
    assert "growth.png" in capsys.readouterr().out
