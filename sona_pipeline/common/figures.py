"""Figures of outliers and scores."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from PIL import Image
from sklearn import metrics

from sona_pipeline.common.files import write_bytes

MOST = 12
"""Panels or lines that a figure of scores shows at most."""
PAIR = 2.25
"""Height of a source, its outlier and their caption, of two lines, in images."""


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure as a PNG of `dpi` pixels an inch, whole or not at all."""
    write_bytes(path, figure_png(figure, dpi))


def figure_png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as a PNG of `dpi` pixels an inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor="white")
    return content.getvalue()


def pairs_figure(pairs: Sequence[tuple[Image.Image, Image.Image, str]], columns: int = 8) -> Figure:
    """A sheet of (source, outlier, caption), source above outlier, in the order given, `columns` pairs side by side."""
    figure = Figure(figsize=(1.5 * columns, _height_of_pairs(pairs, columns)), layout="constrained")
    _draw_pairs(figure, pairs, columns)
    return figure


def inspection_figure(
    counts: Mapping[str, Mapping[str, int]],
    stop_steps: Mapping[int, int],
    steps: int,
    checks: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[Image.Image | None, Image.Image, str]],
    notes: Sequence[str] = (),
    columns: int = 8,
) -> Figure:
    """A sheet of what is in an outlier set.

    Args:
        counts: for each chart its title, and how many outliers have what; the most frequent are shown.
        stop_steps: how many outliers each stop step has.
        steps: T, the last stop step.
        checks: values of the quality checks, for histograms.
        pairs: samples as in `pairs_figure`, where the source may be missing.
        notes: lines that stand below the histograms.
        columns: of the samples.
    """
    heights = [3.2, 2.4, _height_of_pairs(pairs, columns)]
    figure = Figure(figsize=(1.5 * columns, sum(heights)), layout="constrained")
    upper, middle, lower = figure.subfigures(3, 1, squeeze=False, height_ratios=heights).flat
    axes = upper.subplots(1, len(counts) + 1)
    for axis, (title, numbers) in zip(axes, counts.items()):
        _draw_counts(axis, title, numbers)
    axes[-1].bar(range(1, steps + 1), [stop_steps.get(step, 0) for step in range(1, steps + 1)], width=1.0)
    axes[-1].set(title="stop step", xlabel="stop step", ylabel="outliers")
    for axis, (name, values) in zip(np.atleast_1d(middle.subplots(1, len(checks))), checks.items()):
        axis.hist(values, bins=40)
        axis.set(title=f"{name}, median {np.median(values):.3g}", ylabel="outliers")
    middle.supxlabel("\n".join(notes), fontsize=9)
    _draw_pairs(lower, pairs, columns)
    return figure


def _draw_counts(axis: Axes, title: str, numbers: Mapping[str, int], most: int = 16) -> None:
    top = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[:most][::-1]
    names = [_short(name, 24) for name, _ in top]
    axis.barh(range(len(top)), [count for _, count in top], tick_label=names)
    axis.set(title=title if len(numbers) <= most else f"{title}: {most} of {len(numbers)}", xlabel="outliers")
    axis.tick_params(axis="y", labelsize=7)


def _height_of_pairs(pairs: Sequence, columns: int) -> float:
    return 1.5 * PAIR * -(-len(pairs) // columns) + 0.4


def _draw_pairs(figure: FigureBase, pairs: Sequence[tuple[Image.Image | None, Image.Image, str]], columns: int) -> None:
    axis = grid_of_images(figure, columns, PAIR * -(-len(pairs) // columns))
    for k, (source, outlier, caption) in enumerate(pairs):
        column, row = k % columns, PAIR * (k // columns)
        if source is not None:
            show_image(axis, source, column, row)
        show_image(axis, outlier, column, row + 1)
        axis.text(column, row - 0.5, caption, fontsize=8, ha="center", va="bottom")
    figure.suptitle("Source above, outlier below, by rising stop step", fontsize=10)


def scores_figure(panels: Mapping[str, Mapping[str, np.ndarray]], columns: int = 3) -> Figure:
    """Histograms of scores by data set, with the set `id` in black.

    Args:
        panels: for each panel its title, and the scores of each data set; the first `MOST` panels are drawn.
        columns: panels side by side.
    """
    shown = list(panels.items())[:MOST]
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(5.5, 4.2 * columns), 3.4 * rows + 0.3), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    styles = _set_styles(list(dict.fromkeys(name for _, sets in shown for name in sets)))
    for axis, (title, sets) in zip(axes, shown):
        _draw_histograms(axis, sets, styles)
        axis.set_title(_short(title, 44), fontsize=10)
    for axis in axes[len(shown) :]:
        axis.axis("off")
    keys = [Line2D([], [], label=_short(name, 24), **style) for name, style in styles.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=2 * columns, fontsize=8)
    if len(panels) > MOST:
        figure.suptitle(f"{MOST} of {len(panels)}", fontsize=10)
    return figure


def _set_styles(names: list[str]) -> dict[str, dict]:
    colours = color_sequences["tab10" if len(names) <= 11 else "tab20"]
    others = [name for name in names if name != "id"]
    styles = {name: {"color": colours[k % len(colours)], "linewidth": 1.3} for k, name in enumerate(others)}
    return {"id": {"color": "black", "linewidth": 2}} | styles


def _draw_histograms(axis: Axes, sets: Mapping[str, np.ndarray], styles: Mapping[str, dict]) -> None:
    """Few bins where a set is small, whose histogram would be all spikes."""
    low, high = np.quantile(np.concatenate(list(sets.values())), [0.002, 0.998])
    if low == high:
        low, high = low - 0.5, high + 0.5
    bins = np.linspace(low, high, 1 + int(np.clip(2 * min(map(len, sets.values())) ** 0.5, 8, 50)))
    for name, values in sets.items():
        axis.hist(values, bins=bins.tolist(), density=True, histtype="step", **styles[name])
    axis.set(xlabel="score (higher = more OOD)", ylabel="density")


def roc_figure(panels: Mapping[str, Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]]]) -> Figure:
    """ROC curves with OOD as the positive class, averaged over OOD sets at equal false-positive rate.

    The area under such a mean curve is the mean AUROC of the sets.

    Args:
        panels: for each panel its title, and for each line its name, the ID scores and the scores of each OOD set;
            the `MOST` lines of the largest area are drawn. A line has the same colour in all panels.
    """
    figure = Figure(figsize=(5.0 * len(panels), 5.4), layout="constrained")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = {name: (f"C{k % 10}", ("-", "--", ":", "-.")[k // 10 % 4]) for k, name in enumerate(names)}
    for axis, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        curves = {name: _mean_roc(*scores) for name, scores in lines.items()}
        for name in sorted(curves, key=lambda name: -curves[name][2])[:MOST]:
            fpr, tpr, area = curves[name]
            label = f"{_short(name, 34)}: {100 * area:.1f}"
            axis.plot(100 * fpr, 100 * tpr, color=looks[name][0], linestyle=looks[name][1], linewidth=1.4, label=label)
        axis.axhline(95, color="grey", linewidth=0.8, linestyle=(0, (1, 3)))
        axis.set(xlabel="ID images flagged, % (FPR)", ylabel="OOD images flagged, % (TPR)", aspect="equal")
        axis.set_title(f"{title}, AUROC" + (f": {MOST} of {len(lines)}" if len(lines) > MOST else ""), fontsize=10)
        axis.legend(fontsize=7, loc="lower right")
    return figure


def _mean_roc(id_scores: np.ndarray, ood_sets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """False-positive rates, the mean true-positive rate of the sets at each, and the area under that curve."""
    truth = [np.r_[np.zeros(len(id_scores)), np.ones(len(scores))] for scores in ood_sets]
    curves = [metrics.roc_curve(t, np.r_[id_scores, scores])[:2] for t, scores in zip(truth, ood_sets)]
    grid = np.linspace(0, 1, 1001)
    tpr = np.mean([np.interp(grid, *curve) for curve in curves], axis=0)
    return np.r_[0, grid], np.r_[0, tpr], float(np.mean([metrics.auc(*curve) for curve in curves]))


def _short(text: str, most: int) -> str:
    """The text on one line, cut to `most` characters; matplotlib takes dollar signs for formulas."""
    text = " ".join(text.split())
    return (text if len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")


def grid_of_images(figure: FigureBase, columns: int, rows: float) -> Axes:
    """An empty grid for `show_image`: one pair of axes, which matplotlib draws in a fraction of the time of many."""
    axis = figure.add_subplot(aspect="equal", xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axis.axis("off")
    return axis


def show_image(axis: Axes, image: Image.Image, column: int, row: float) -> None:
    """Draw an image as it is into a place of the grid, grey ones between black and white."""
    axis.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255, extent=extent(image, column, row))


def extent(image: Image.Image, column: int, row: float) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of an image at a place of the grid, with a gap to the next one."""
    width, height = (0.47 * side / max(image.size) for side in image.size)
    return column - width, column + width, row + height, row - height
