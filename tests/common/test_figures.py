"""Sheets of images, as they are drawn: every image in its place, whole, with its shape."""

import io

import numpy as np
import pytest
from PIL import Image

from sona_pipeline.common.figures import figure_png, pairs_figure

DPI = 50


def boxes_of(figure, *colours: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of what has each of the colours, which has no hole."""
    pixels = np.asarray(Image.open(io.BytesIO(figure_png(figure, dpi=DPI))).convert("RGB"))
    found = []
    for colour in colours:
        rows, columns = np.nonzero((pixels == colour).all(-1))
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert len(rows) == (right - left) * (bottom - top)
        found.append((left, top, right - left, bottom - top))
    return found


def test_each_outlier_lies_below_its_source_and_pairs_are_read_by_line():
    colours = [(200, 20 * k, 50) for k in range(10)]
    images = [Image.new("RGB", (6, 6), colour) for colour in colours]
    pairs = [(source, outlier, "a\n→ b") for source, outlier in zip(images[::2], images[1::2])]
    boxes = boxes_of(pairs_figure(pairs, columns=3), *colours)
    side = boxes[0][2]
    assert side > 0.9 * 1.3 * DPI  # a column has an inch and a half, with gaps
    sources, outliers = boxes[::2], boxes[1::2]
    for k, (source, outlier) in enumerate(zip(sources, outliers)):
        assert source[2:] == pytest.approx((side, side), abs=1) and outlier[2:] == pytest.approx((side, side), abs=1)
        assert abs(source[0] - outlier[0]) <= 1 and side < outlier[1] - source[1] < 1.2 * side
        if k % 3:
            assert abs(source[1] - sources[k - 1][1]) <= 1 and side < source[0] - sources[k - 1][0] < 1.2 * side
        elif k:
            assert abs(source[0] - sources[k - 3][0]) <= 1 and source[1] > outliers[k - 3][1] + 1.1 * side


def test_a_wide_image_keeps_its_shape_and_a_source_may_be_missing():
    colours = [(200, 20, 50), (50, 200, 20), (20, 50, 200)]
    wide, *square = (Image.new("RGB", size, colour) for size, colour in zip(((8, 4), (4, 4), (4, 4)), colours))
    found, source, outlier = boxes_of(pairs_figure([(None, wide, ""), (*square, "")]), *colours)
    assert found[2] == pytest.approx(outlier[2], abs=1) and found[3] == pytest.approx(outlier[3] / 2, abs=1)
    assert found[1] == pytest.approx(outlier[1] + outlier[3] / 4, abs=1)
    assert source[1] < outlier[1] and found[0] < outlier[0]
