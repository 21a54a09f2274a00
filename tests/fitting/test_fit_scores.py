"""The score of detectors that held-out classes choose, beside sklearn and detectors that were trained with it."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from small_runs import write_photos, write_unknown

from sona_pipeline import RECIPES, Detector, GenerationSettings, Running, TestSets, hold_out, load_detector, open_images
from sona_pipeline.fitting import check_classes
from sona_pipeline.fitting.job import Fitted, fit_detector
from sona_pipeline.fitting.scores import Choice, choose_score, give_score
from sona_pipeline.fitting.sources import FitSources
from sona_pipeline.fitting.verdict import sentences
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.training.train import train_detector


def table_of(gain: float, seed: int, count: int = 60) -> pd.DataFrame:
    """Scores of which energy+knn tells the unknown images better by so much."""
    rng, is_unknown = np.random.default_rng(seed), np.arange(2 * count) >= count
    energy = rng.normal(size=2 * count) + is_unknown
    return pd.DataFrame(
        {
            "group": np.where(is_unknown, "near_ood", "id"),
            "key": [f"{seed}/{i}" for i in range(2 * count)],
            "energy": energy,
            "energy+knn": energy + gain * is_unknown + 0.1 * rng.normal(size=2 * count),
        }
    )


@pytest.mark.parametrize(("gain", "chosen"), [(1.0, "energy+knn"), (-1.0, "energy"), (0.0, "energy"), (0.01, "energy")])
def test_energy_stays_unless_the_other_score_leads_by_more_than_chance(gain, chosen):
    tables = {str(seed): table_of(gain, seed) for seed in range(3)}
    choice = choose_score(tables)
    assert choice.score == chosen
    for score, auroc in choice.auroc.items():
        own = [roc_auc_score(table["group"] == "near_ood", table[score]) for table in tables.values()]
        assert auroc == pytest.approx(100 * np.mean(own))
    assert choice.difference == pytest.approx(choice.auroc["energy+knn"] - choice.auroc["energy"])
    assert choice.low <= choice.difference <= choice.high
    assert (choice.low > 0) is (chosen == "energy+knn")


def test_the_same_scores_are_a_tie():
    tables = {str(seed): table_of(0.0, seed).assign(**{"energy+knn": lambda t: t["energy"]}) for seed in range(2)}
    choice = choose_score(tables)
    assert (choice.score, choice.difference, choice.low, choice.high) == ("energy", 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> FitSources:
    place = tmp_path_factory.mktemp("photos")
    images = open_images(write_photos(place / "photos", 10, ("dress", "shirt", "sneaker")))
    rest, test = hold_out(images, 0.3, 0)
    train, validation = hold_out(rest, 0.2, 1)
    generation = GenerationSettings(ood_labels=("bag",), num_inference_steps=2)
    training = replace(RECIPES["small"], epochs=1, batch_size=8, min_strength=0.0)
    sets = TestSets(test, {"unknown": open_images(write_unknown(place / "unknown"))})
    running = Running(cpu=True)
    return FitSources(train, validation, sets, generation, training, running=running, chooses_score=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder that several runs go on in."""
    return tmp_path_factory.mktemp("runs") / "run"


def fitted_by(score: str, sources: FitSources, run: Path, count: int, monkeypatch) -> Fitted:
    """A run whose held-out classes choose a score."""
    auroc = {"energy": 61.5, "energy+knn": 72.5}
    monkeypatch.setattr(check_classes, "choose_score", lambda tables: Choice(score, auroc, 11.0, 2.0, 20.0))
    return fit_detector(sources, load_pipeline("tiny", "cpu", dtype="float32"), run, check_classes=count)


def weights_of(run: Path) -> dict:
    """All weights of the networks, by file and name."""
    found = {path: load_file(path) for path in run.glob("**/model.safetensors")}
    return {
        (path, name): value.tolist()
        for path, some in found.items()
        for name, value in some.items()
        if name != "neighbours"
    }


def test_a_run_whose_classes_choose_another_score_than_before_trains_nothing_anew(sources, run, monkeypatch):
    """The detectors are those of a training with the score, on all classes and on those that are left."""
    before: dict = {}
    for score, count in (("energy", 0), ("energy+knn", 1), ("energy", 1)):
        found = fitted_by(score, sources, run, count, monkeypatch)
        assert {key: value for key, value in weights_of(run).items() if key in before} == before
        before = weights_of(run)
        settings = replace(sources.training, score=score)
        alone = train_detector(
            sources.train, settings, validation=sources.validation, outliers=found.pairs, running=sources.running
        )
        kept = load_detector(run / "detector", "cpu")
        assert kept.score == score and (kept.neighbours is not None) is (score == "energy+knn")
        assert kept.threshold == pytest.approx(alone.threshold, abs=1e-4)
        assert kept.id_quantiles == pytest.approx(alone.id_quantiles, abs=1e-4)
        assert json.loads((run / "detector" / "training.json").read_text())["score"] == score
        assert found.judged.score == score and score in pd.read_parquet(run / "results/scores/cross-entropy-0.parquet")
        for fold in found.checks.folds.values() if found.checks else ():
            assert {one.score for one in fold.detectors} == {score}
            assert {"energy", "energy+knn"} <= set(fold.tables[0])


def test_a_full_disk_leaves_the_detector_as_it_was(sources, run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    folder = Path(shutil.copytree(run / "detector", tmp_path / "detector"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Detector, "save_pretrained", full)
    with pytest.raises(OSError, match="is full"):
        give_score(folder, sources.train, sources.validation, replace(sources.training, score="energy+knn"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_fold_is_judged_by_the_score_and_threshold_of_a_training_with_it(sources, run, monkeypatch):
    judged = {score: fitted_by(score, sources, run, 1, monkeypatch).checks.folds for score in ("energy", "energy+knn")}
    named = replace(sources, chooses_score=False)
    names = list(judged["energy"])
    alone = check_classes.check_classes(names, named, run / "generated", run.parent / "alone")
    for name in names:
        assert judged["energy"][name].flagged("near_ood") == alone.folds[name].flagged("near_ood")
        ours = [one.threshold for one in judged["energy"][name].detectors]
        assert ours == pytest.approx([one.threshold for one in alone.folds[name].detectors], abs=1e-4)
        detector, table = judged["energy+knn"][name].detectors[0], judged["energy+knn"][name].tables[0]
        part = table[table["group"] == "near_ood"]["energy+knn"]
        shares = judged["energy+knn"][name].flagged("near_ood")
        assert shares[0] == pytest.approx(100 * (part > detector.threshold).mean())


def test_the_choice_is_told_and_recorded(sources, run, monkeypatch):
    found = fitted_by("energy+knn", sources, run, 1, monkeypatch)
    told = next(sentence for sentence in sentences(found) if "chose the score" in sentence)
    for part in ("score, energy+knn", "72.5", "61.5", "+11.0", "+2.0 to +20.0", "optimistic"):
        assert part in told
    assert told in (run / "report.html").read_text().replace("\u00a0", " ")
    assert json.loads((run / "checks" / "score.json").read_text())["score"] == "energy+knn"
    assert json.loads((run / "fit.json").read_text())["train score"] == "unnamed"
    with pytest.raises(ValueError, match=r"train score \('unnamed' then, 'energy' now\)"):
        fit_detector(replace(sources, chooses_score=False), load_pipeline("tiny", "cpu", dtype="float32"), run)


def test_detectors_that_are_half_trained_take_the_score_up(sources, tmp_path):
    record = {"score": "energy", "epochs": 1, "notes": {"versions": {}}}
    (tmp_path / "training.json").write_text(json.dumps(record))
    settings = replace(sources.training, score="energy+knn")
    give_score(tmp_path, sources.train, sources.validation, settings)
    give_score(tmp_path / "none", sources.train, sources.validation, settings)
    assert json.loads((tmp_path / "training.json").read_text()) == record | {"score": "energy+knn"}
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]
