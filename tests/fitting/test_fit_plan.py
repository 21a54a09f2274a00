"""The plan of a run: what is done costs nothing, and what is left adds up."""

from dataclasses import replace

import pytest
from small_runs import write_photos

from sona_pipeline import RECIPES, Detector, GenerationSettings, Running, TestSets, hold_out, open_images
from sona_pipeline.common.files import settle_settings
from sona_pipeline.fitting.check_classes import held_out_classes
from sona_pipeline.fitting.job import RECORD, record_of
from sona_pipeline.fitting.plan import FitPlan, Step, plan_fit
from sona_pipeline.fitting.sources import FitSources
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.generate import generate_outliers
from sona_pipeline.training.start import kept_settings


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu", dtype="float32")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> FitSources:
    images = open_images(write_photos(tmp_path_factory.mktemp("photos") / "photos", 8))
    train, test = hold_out(images, 0.25, 0)
    generation = GenerationSettings(ood_labels=("bag",), num_inference_steps=2)
    training = replace(RECIPES["small"], epochs=7, batch_size=8)
    return FitSources(train, test, TestSets(test), generation, training, running=Running(cpu=True))


def test_steps_scale_with_epochs_and_checks(sources, pipe, tmp_path):
    plan = plan_fit(sources, pipe, tmp_path / "run", 2)
    assert [step.name for step in plan.steps] == [
        *("generate", "check classes", "train detector", "train baseline", "evaluate")
    ]
    assert all(step.seconds > 0 for step in plan.steps)
    assert plan.seconds == pytest.approx(sum(step.seconds for step in plan.steps))
    seconds = {step.name: step.seconds for step in plan.steps}
    both = seconds["train detector"] + seconds["train baseline"]
    assert seconds["check classes"] == pytest.approx(2 * 0.75 * both, rel=0.2)  # three classes of four, twice
    assert not (tmp_path / "run").exists()


def test_what_is_done_is_told_and_costs_nothing(sources, pipe, tmp_path):
    run, half = tmp_path / "run", sources.train.take(range(0, len(sources.train), 2))
    settle_settings(run / RECORD, record_of(sources, pipe))
    generate_outliers(half, pipe, run / "generated", sources.generation)
    begun, whole = (plan_fit(sources, pipe, folder, 0).steps[0] for folder in (run, tmp_path / "new"))
    assert not begun.is_done
    assert begun.bytes == pytest.approx(whole.bytes / 2, rel=0.1)
    (run / "baseline").mkdir()
    (run / "baseline" / "config.json").write_text("{}")
    generate_outliers(sources.train, pipe, run / "generated", sources.generation)
    plan = plan_fit(sources, pipe, run, 0)
    assert [step.name for step in plan.steps if step.is_done] == ["generate", "train baseline"]
    assert all(step.seconds == 0 for step in plan.steps if step.is_done)
    assert plan.bytes == plan.steps[1].bytes > 0


def test_a_class_that_is_checked_takes_no_disk_any_more(sources, pipe, tmp_path):
    settle_settings(tmp_path / RECORD, record_of(sources, pipe))
    whole = plan_fit(sources, pipe, tmp_path, 2).steps[1]
    for name in ("detector", "baseline"):
        folder = tmp_path / "checks" / held_out_classes(sources.train.classes, 2, 0)[0] / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert plan_fit(sources, pipe, tmp_path, 2).steps[1].bytes == whole.bytes / 2 > 0


def test_a_classifier_is_calibrated_and_judged_as_it_was(sources, pipe, tmp_path):
    classifier = Detector(list(sources.train.classes), image_size=32)
    kept = replace(sources, classifier=classifier, training=kept_settings(sources.training, classifier))
    steps = plan_fit(kept, pipe, tmp_path / "run", 0).steps
    assert [step.name for step in steps] == [
        *("generate", "train detector", "train baseline", "calibrate original", "evaluate")
    ]
    calibration, evaluation = steps[-2:]  # of a classifier, and of three detectors on as many images
    assert evaluation.seconds == pytest.approx(3 * calibration.seconds) and calibration.bytes > 0


def test_a_folder_of_another_run_is_refused(sources, pipe, tmp_path):
    settle_settings(tmp_path / RECORD, record_of(sources, pipe))
    other = replace(sources, training=replace(sources.training, epochs=8))
    with pytest.raises(ValueError, match=r"train epochs \(7 then, 8 now\)"):
        plan_fit(other, pipe, tmp_path, 0)
    (tmp_path / "mine" / "generated").mkdir(parents=True)
    with pytest.raises(ValueError, match="was not made by this command"):
        plan_fit(sources, pipe, tmp_path / "mine", 0)


@pytest.mark.parametrize(
    ("seconds", "size", "hours", "message"),
    [(7200.0, 10, 1.9, "about 2 hours on this cpu"), (1.0, 2000, 24, "of disk"), (7000.0, 10, 2, None)],
)
def test_too_long_and_too_large_are_refused(seconds, size, hours, message):
    plan = FitPlan([Step("generate", "outliers", seconds, size), Step("old", "it", 0, 10**9, True)], 1000, "cpu")
    if message is None:
        plan.check(hours)
        return
    with pytest.raises(ValueError, match=message):
        plan.check(hours)
