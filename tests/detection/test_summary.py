"""Shares of flagged images: intervals beside scipy's own, days and classes by hand, and what is said of them."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from rich.console import Console
from scipy.stats import binomtest

from sona_pipeline.detection.detector import Detection, Detector
from sona_pipeline.detection.summary import Share, summary_of

PROMISING = {"threshold": 0.0, "id_rate": 0.95}


@given(images=st.integers(1, 3000), share=st.floats(0, 1))
def test_intervals_are_those_of_clopper_and_pearson(images, share):
    flagged = round(share * images)
    expected = binomtest(flagged, images).proportion_ci(0.95, method="exact")
    assert Share(images, flagged).interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_interval_excludes_what_a_two_sided_tail_of_2_5_percent_excludes():
    for flagged in range(101):
        tails = (binomtest(flagged, 100, 0.05, alternative=side).pvalue for side in ("less", "greater"))
        assert Share(100, flagged).excludes(0.05) == (min(tails) < 0.025)
    assert not Share(100, 99).excludes(None)


def detector(**settings) -> Detector:
    return Detector(["cat", "dog", "eel"], image_size=16, **settings)


def verdicts(folder: Path, rows: list[tuple[str, str, int, int]]) -> list:
    """Files of a day and a label each, of which so many are flagged."""
    found = []
    for day, label, count, flagged in rows:
        for k in range(count):
            path = folder / f"{day}-{label}-{k}.png"
            path.touch()
            noon = datetime.fromisoformat(f"{day}T12:00").timestamp()
            os.utime(path, (noon, noon))
            found.append((path, Detection(label, 0.9, -1.0, -1.0, k < flagged)))
    return found


def test_a_day_and_a_class_that_differ_are_named(tmp_path):
    found = verdicts(
        tmp_path, [("2026-11-19", "cat", 60, 3), ("2026-11-20", "cat", 40, 2), ("2026-11-20", "eel", 60, 19)]
    )
    found += [(tmp_path / "broken.png", "cannot be read as an image: broken")] * 2
    summary = summary_of(found, detector(**PROMISING))
    assert (summary.promised, summary.unreadable, summary.all) == (0.05, 2, Share(160, 24))
    assert summary.by_class == {"cat": Share(100, 5), "eel": Share(60, 19)}
    assert summary.by_day == {"2026-11-19": Share(60, 3), "2026-11-20": Share(100, 21)}
    first, day, label = summary.findings()
    assert first == "It flags 15 % (9.85 to 21.5) of 160 images, 5 % were promised: the data have changed."
    assert day == "It flags 21 % (13.5 to 30.3) of 100 images of 2026-11-20, 5 % were promised: the data have changed."
    assert label.startswith(
        "It flags 31.7 % (20.3 to 45) of 60 images that it takes for 'eel', 5 % were promised over all"
    )
    assert "sona calibrate --per-class" in label
    own = summary_of(found, detector(**PROMISING, class_thresholds=[None, None, 1.0]))
    assert own.findings()[2].endswith("'eel', 5 % were promised: the data have changed.")
    others = summary_of(found, detector(**PROMISING, class_thresholds=[1.0, None, None]))
    assert others.findings()[2] == label

    row = json.loads(json.dumps(summary.as_row()))
    assert row["findings"] == [first, day, label] and row["unreadable"] == 2
    assert (row["images"], row["flagged"], row["share"], row["as_promised"]) == (160, 24, 0.15, False)
    assert row["by_day"]["2026-11-19"]["as_promised"] is True
    assert row["by_class"]["eel"]["interval"] == pytest.approx(binomtest(19, 60).proportion_ci(method="exact"))
    lines = _printed(summary.table())
    assert [line.split("│")[1].strip() for line in lines if "│" in line][-5:] == [
        *("all", "class cat", "class eel", "day 2026-11-19", "day 2026-11-20")
    ]
    assert any("31.7 %" in line and "20.3 to 45.0 %" in line and "5 %" in line for line in lines)


def test_less_than_promised_is_a_change_too_and_as_promised_is_none(tmp_path):
    found = verdicts(tmp_path, [("2026-01-01", "dog", 100, 0)])
    assert "5 % were promised: the data have changed" in summary_of(found, detector(**PROMISING)).findings()[0]
    found = verdicts(tmp_path, [("2026-01-01", "dog", 100, 6)])
    assert summary_of(found, detector(**PROMISING)).findings() == [
        "It flags 6 % (2.23 to 12.6) of 100 images, 5 % were promised: no change is seen."
    ]


def test_without_a_promise_there_are_shares_and_without_a_threshold_nothing(tmp_path):
    found = verdicts(tmp_path, [("2026-01-01", "dog", 10, 5)])
    summary = summary_of(found, detector(threshold=0.0))
    assert "the detector does not say: `sona calibrate`" in " ".join(summary.findings())
    assert summary.as_row()["as_promised"] is None and summary.promised is None
    assert any("50.0 %" in line and "?" in line for line in _printed(summary.table()))
    with pytest.raises(ValueError, match="no threshold, and so flags nothing: give it one by `sona calibrate`"):
        summary_of(found, detector())


def test_a_file_that_has_gone_is_of_an_unknown_day(tmp_path):
    (path, said), *rest = verdicts(tmp_path, [("2026-01-01", "dog", 2, 0)])
    path.unlink()
    summary = summary_of([(path, said), *rest], detector(**PROMISING))
    assert summary.by_day == {"2026-01-01": Share(1, 0), "unknown": Share(1, 0)}


def _printed(table) -> list[str]:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()
