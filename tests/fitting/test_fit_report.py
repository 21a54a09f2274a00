"""The report as a reader has it: in a browser, wide and narrow, without a network, with names that look like HTML."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import sync_playwright
from sklearn.metrics import roc_auc_score
from small_runs import write_photos, write_unknown

from sona_pipeline import (
    RECIPES,
    TINY_DETECTOR,
    GenerationSettings,
    Running,
    TestSets,
    hold_out,
    load_detector,
    load_pipeline,
    open_images,
)
from sona_pipeline.fitting.job import Fitted, fit_detector
from sona_pipeline.fitting.sources import FitSources
from sona_pipeline.fitting.verdict import headline, percent, sentences
from sona_pipeline.training.start import kept_settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ("<script>alert(1)<", "Ämter & Bücher", "ein-sehr-langer-name-" + "x" * 120)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Fitted:
    place = tmp_path_factory.mktemp("run")
    photos = write_photos(place / "photos", 10, ("dress", "shirt", "sneaker"))
    for old, new in zip(("dress", "shirt", "sneaker"), NAMES):
        (photos / old).rename(photos / new)
    rest, test = hold_out(open_images(photos), 0.3, 0)
    train, validation = hold_out(rest, 0.2, 1)
    far = open_images(write_unknown(place / "unknown"))
    generation = GenerationSettings(ood_labels=("bag", "<b>tag</b>"), num_inference_steps=3)
    training = replace(RECIPES["small"], epochs=1, batch_size=8, min_strength=0.0)
    sets = TestSets(test, {"<u>near</u>": far}, {})
    sources = FitSources(train, validation, sets, generation, training, running=Running(cpu=True))
    pipe = load_pipeline("tiny", "cpu", dtype="float32")
    return fit_detector(sources, pipe, place / "run", check_classes=1, command="sona fit --data '<photos>'")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Fitted:
    """A run that keeps a classifier."""
    place = tmp_path_factory.mktemp("kept")
    classifier = load_detector(TINY_DETECTOR, "cpu")
    rest, test = hold_out(open_images(write_photos(place / "photos", 6, tuple(classifier.classes))), 0.3, 0)
    train, validation = hold_out(rest, 0.2, 1)
    sets = TestSets(test, {"a-rather-long-name-of-a-test-set": open_images(write_unknown(place / "unknown"))})
    generation = GenerationSettings(ood_labels=("bag",), num_inference_steps=2)
    training = kept_settings(replace(RECIPES["finetune"], epochs=1, batch_size=8, min_strength=0.0), classifier)
    running = Running(cpu=True)
    sources = FitSources(train, validation, sets, generation, training, running=running, classifier=classifier)
    return fit_detector(sources, load_pipeline("tiny", "cpu", dtype="float32"), place / "run")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if "CI" in os.environ:
            pytest.fail("there is no Chromium: install it")
        pytest.skip("there is no Chromium to look at the report with")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(fitted, browser):
    """The report in a browser without a network; what it asked for is in `page.asked`."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(120_000)
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("dialog", lambda dialog: page.errors.append(dialog.message))
    page.on("pageerror", lambda error: page.errors.append(error))
    page.goto((fitted.output / "report.html").as_uri())
    return page


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_lies_beside_the_page(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    boxes = page.evaluate("[...document.images].map(i => i.getBoundingClientRect()).map(b => [b.left, b.right])")
    assert boxes and all(left >= 0 and right <= width for left, right in boxes)


def test_images_are_inside_the_file_and_told_in_words(page, fitted):
    shown = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
    assert len(shown) > 20
    assert all(complete and width > 0 and alt for complete, width, alt in shown)
    assert all(url.startswith(("file:", "data:")) for url in page.asked)
    assert sum(url.startswith("file:") for url in page.asked) == 1
    assert not page.errors
    assert (fitted.output / "report.html").stat().st_size < 10_000_000


def test_names_are_texts(page, fitted):
    text = page.inner_text("main")
    for name in (*NAMES, "<u>near</u>", "sona fit --data '<photos>'"):
        assert name in text
    assert page.locator("main script, main u, main b").count() == 0


def test_verdict_comes_first_with_the_numbers_of_the_tables(page, fitted):
    lines = page.inner_text("main").replace("\u00a0", " ").splitlines()
    assert headline(fitted) in lines[:4]
    assert set(sentences(fitted)) <= set(lines)
    held_out = next(iter(fitted.checks.folds))
    rows, thresholds = [], []
    for kind, method in (("detector", "SONA"), ("baseline", "cross-entropy")):
        found = next((fitted.output / "checks").glob(f"*/results/scores/{method}-0.parquet"))
        rows.append(pd.read_parquet(found))
        thresholds.append(fitted.checks.folds[held_out].detectors[("detector", "baseline").index(kind)].threshold)
    flagged = [
        100 * (table[table["group"] == "near_ood"]["energy"] > limit).mean() for table, limit in zip(rows, thresholds)
    ]
    told = re.search(r"of classes it never saw it flags (.+ %), the plain classifier (.+ %)\.", headline(fitted))
    assert told.groups() == tuple(map(percent, flagged))


def test_images_are_ranked_by_the_score(page, fitted):
    """The unknown image that is flagged most surely is the one of the highest score."""
    judged = fitted.judged
    table = judged.tables[0]
    unknown = table[table["group"] == "near_ood"].sort_values("energy", ascending=False, kind="stable")
    is_flagged = unknown["energy"] > judged.detectors[0].threshold
    title = "Unknown, and flagged most surely" if is_flagged.any() else "Unknown, and taken for known most surely"
    first = unknown.iloc[0] if is_flagged.any() else unknown.iloc[-1]
    caption = page.locator(f"h3:has-text('{title}') + .grid figcaption").first.inner_text()
    assert caption.replace("\u00a0", " ") == (
        f"<u>near</u>: taken for {judged.detectors[0].classes[first['predicted']]}, {100 * first['confidence']:.0f} %"
    )


def test_three_detectors_are_compared_and_read_well_on_a_phone(kept, browser):
    """Each row has the numbers of all three, worked out here, and its name stays in sight while it is scrolled."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_default_timeout(120_000)
    page.goto((kept.output / "report.html").as_uri())
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    table = page.locator("h2:has-text('Test sets') + .wide")
    heads = [head.replace("\n", " ") for head in table.locator("th").all_inner_texts()]
    cells = table.locator("tbody tr").first.locator("td").all_inner_texts()
    row = dict(zip(heads, cells, strict=True))
    for kind, detector, scores in zip(("SONA", "plain", "as it was"), kept.judged.detectors, kept.judged.tables):
        own, unknown = (scores[scores["group"] == group]["energy"] for group in ("id", "near_ood"))
        assert row[f"flagged, {kind}"].replace("\u00a0", " ") == percent(100 * (unknown > detector.threshold).mean())
        truth = [0] * len(own) + [1] * len(unknown)
        assert row[f"AUROC, {kind}"] == f"{100 * roc_auc_score(truth, [*own, *unknown]):.1f}"
        assert (
            percent(100 * (scores["predicted"] == scores["label"])[scores["group"] == "id"].mean())
            in sentences(kept)[0]
        )
    assert headline(kept).endswith(f"the classifier as it was {row['flagged, as it was']}.")
    table.evaluate("box => box.scrollLeft = box.scrollWidth")
    name, last = (table.locator("tbody tr").first.locator("td").nth(k).bounding_box() for k in (0, -1))
    assert name["x"] >= 0 and name["x"] + name["width"] < 0.5 * 390
    assert name["x"] + name["width"] <= last["x"] and last["x"] + last["width"] <= 390
    page.close()


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "0 %"), (0.04, "0 %"), (3.33, "3.3 %"), (9.96, "10 %"), (5.0, "5 %"), (100.0, "100 %")]
)
def test_shares_in_words(value, words):
    assert percent(value) == words


def test_report_says_so_where_nothing_unknown_was_there(fitted):
    known = replace(fitted.judged, sets=TestSets(fitted.sources.sets.id))
    alone = replace(fitted, judged=known, checks=None)
    assert "Nothing was there to tell" in headline(alone)
    assert "--check-classes" in sentences(alone)[-1]
    assert Path(fitted.output, "report.html").exists()
