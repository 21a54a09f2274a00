"""Classes that are held out, beside a slow version written apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from small_runs import CLASSES, write_photos

from sona_pipeline import RECIPES, GenerationSettings, Running, TestSets, hold_out, load_detector, open_images
from sona_pipeline.fitting.check_classes import HELD_OUT, check_classes, fold_without, held_out_classes
from sona_pipeline.fitting.sources import FitSources, number_of_checks
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.generate import generate_outliers


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> FitSources:
    images = open_images(write_photos(tmp_path_factory.mktemp("photos") / "photos"))
    rest, test = hold_out(images, 0.2, 0)
    train, validation = hold_out(rest, 0.1, 1)
    generation = GenerationSettings(ood_labels=("bag", "coat", "T-shirts"), num_inference_steps=2)
    training = replace(RECIPES["small"], epochs=1, batch_size=8, min_strength=0.0)
    return FitSources(train, validation, TestSets(test), generation, training, running=Running(cpu=True))


@pytest.fixture(scope="module")
def generated(sources, tmp_path_factory) -> Path:
    """Outliers, some of which a blend gives the meaning of another class."""
    pipe = load_pipeline("tiny", "cpu", dtype="float32", scheduler="ddim")
    blended = replace(sources.generation, blend="labels")
    return generate_outliers(sources.train, pipe, tmp_path_factory.mktemp("set") / "set", blended)


def outliers_that_may_mean(name: str, generated: Path) -> set[str]:
    """Keys of the sources of outliers with a meaning that has the word of the class in it."""
    import json

    lines = (generated / "outliers" / "metadata.jsonl").read_text().splitlines()
    return {row["source_key"] for row in map(json.loads, lines) if name in row["ood_label"].casefold()}


def test_a_fold_knows_nothing_of_its_class(sources, generated):
    for name in CLASSES:
        fold = fold_without(name, sources, generated)
        tainted = outliers_that_may_mean(name, generated)
        expected = [key for key in sources.train.keys if not key.startswith(f"{name}/") and key not in tainted]
        assert tainted and list(fold.pairs.images.keys) == expected
        others = tuple(other for other in CLASSES if other != name)
        for images in (fold.pairs.images, fold.validation, fold.sets.id):
            assert images.classes == others
            assert all(key.split("/")[-2] == images.label_name(i) for i, key in enumerate(images.keys))
        unknown = fold.sets.near[HELD_OUT]
        everything = [f"{part}/{key}" for part, some in sources.parts.items() for key in some.keys]
        assert sorted(unknown.keys) == sorted(key for key in everything if f"/{name}/" in key)
        for i in (0, len(unknown) - 1):
            part, _, key = unknown.keys[i].partition("/")
            original = sources.parts[part].image(sources.parts[part].keys.index(key))
            assert np.array_equal(np.asarray(unknown.image(i)), np.asarray(original))


def test_numbers_are_those_of_the_detectors_on_these_images(sources, generated, tmp_path):
    names = held_out_classes(sources.train.classes, 2, 0)
    checks = check_classes(names, sources, generated, tmp_path / "checks")
    by_hand = {}
    for name in names:
        found = []
        for kind in ("detector", "baseline"):
            detector = load_detector(tmp_path / "checks" / name / kind, "cpu")
            assert name not in detector.classes
            test = sources.sets.id
            scores = {}
            for part, images in sources.parts.items():
                for i in range(len(images)):
                    scores[part, images.label_name(i), i] = detector(images.image(i)).score
            known = [s for (part, label, _), s in scores.items() if part == "test" and label != name]
            unknown = [s for (_, label, _), s in scores.items() if label == name]
            assert len(known) + test.labels.count(test.classes.index(name)) == len(test)
            truth = [0] * len(known) + [1] * len(unknown)
            found.append(100 * roc_auc_score(truth, known + unknown))
            flagged = 100 * np.mean(np.array(unknown) > detector.threshold)
            place = ("detector", "baseline").index(kind)
            assert checks.folds[name].flagged("near_ood")[place] == pytest.approx(flagged)
        by_hand[name] = found
    rows = checks.differences[checks.differences["metric"] == "auroc"].set_index("held_out")
    for name, (ours, theirs) in by_hand.items():
        assert rows.loc[name, ["ours", "theirs", "difference"]].tolist() == pytest.approx(
            [ours, theirs, ours - theirs], abs=1e-3
        )
    mean = np.mean([ours - theirs for ours, theirs in by_hand.values()])
    assert rows.loc["", "difference"] == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize(
    ("asked", "images", "classes", "count"),
    [(None, 3000, 10, 3), (None, 3000, 4, 2), (None, 100, 3, 1), (None, 100, 2, 0), (None, 3001, 10, 0), (0, 9, 9, 0)],
)
def test_small_data_has_checks_by_default(asked, images, classes, count):
    class Some:
        def __len__(self):
            return images

    some = Some()
    some.classes = tuple(map(str, range(classes)))
    assert number_of_checks(asked, some, has_classifier=False) == count
    assert number_of_checks(None, some, has_classifier=True) == 0
    if asked is None:
        of_blends = {3: 0, 4: 1}.get(classes, count)  # of three classes, an outlier means the two others
        assert number_of_checks(None, some, has_classifier=False, blend="classes") == of_blends
    if classes == 3:
        with pytest.raises(ValueError, match="has to be at most 0 of 3 classes, of which 3 or more are left"):
            number_of_checks(1, some, has_classifier=False, blend="classes")


def test_held_out_classes_of_a_smaller_draw_are_part_of_a_larger_one():
    names = [str(k) for k in range(20)]
    assert held_out_classes(names, 3, 5) == held_out_classes(names, 7, 5)[:3]
    assert len(set(held_out_classes(names, 20, 5))) == 20
    assert held_out_classes(names, 20, 5) != held_out_classes(names, 20, 6)
