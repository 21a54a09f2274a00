"""The quickstart on a cut-down sample; CI runs it whole, as the README's first command."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sona_pipeline import quickstart as job
from sona_pipeline.data import sample
from sona_pipeline.data.images import open_images
from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.score_table import by_set, read_scores
from sona_pipeline.generation import bundles
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.training.settings import RECIPES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs the cut-down quickstart in one folder and returns its results and that folder."""
    with pytest.MonkeyPatch.context() as patch:
        whole = sample.id_images
        patch.setattr(sample, "id_images", lambda part: whole(part).take(range(48)))
        patch.setitem(RECIPES, "small", replace(RECIPES["small"], epochs=2, batch_size=16))
        patch.setattr(
            job, "GenerationSettings", lambda **given: GenerationSettings(**given | {"num_inference_steps": 8})
        )
        folder = tmp_path_factory.mktemp("quick start")
        patch.setattr(bundles, "DRAWN", {"train": 5, "validation": 2, "test": 2, "near": 3})
        yield lambda seed=0, model="tiny", place=folder: (job.quickstart(place, seed, model), place)


def test_results_pictures_and_resume(run):
    results, folder = run()
    stored = json.loads((folder / "results.json").read_text())
    assert stored == results
    for part in (results, results["baseline"]):
        assert 0 <= part["id_accuracy"] <= 100
        assert set(part["near_ood"]) == {"coat", "ankle boot", "mean"}
        assert set(part["far_ood"]) == {"digits", "photos", "mean"}
        for row in [*part["near_ood"].values(), *part["far_ood"].values()]:
            assert set(row) == {"auroc", "fpr95", "aupr_in", "aupr_out"}
    pictures = [f"pictures/{name}.png" for name in ("pairs", "masks-1", "masks-2", "masks-3")]
    for name in (*pictures, "results/scores.png", "results/roc.png"):
        with Image.open(folder / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5

    scores = read_scores(folder / "results" / "scores" / "SONA-0.parquet")
    near = ood_metrics(by_set(scores, "energy", "id")["id"], by_set(scores, "energy", "near_ood")["coat"])
    assert near == results["near_ood"]["coat"]

    kept = [
        p
        for part in ("generated", "detector", "baseline")
        for p in (folder / part).rglob("*")
        if p.is_file() and p.name != ".lock"
    ]
    made = {p: p.stat().st_mtime_ns for p in kept}
    again, _ = run()
    assert all(p.stat().st_mtime_ns == time for p, time in made.items())
    assert {k: v for k, v in again.items() if k != "seconds_of_this_run"} == {
        k: v for k, v in results.items() if k != "seconds_of_this_run"
    }


def test_other_seed_in_the_same_folder_is_refused(run):
    run()
    with pytest.raises(ValueError, match=r"seed \(0 then, 1 now\)"):
        run(1)


def test_model_for_colour_draws_its_images_and_takes_them_up_again(run, tmp_path):
    results, folder = run(model="cifar", place=tmp_path)
    near = {"aquarium fish", "castle", "lawn mower", "raccoon", "squirrel"}
    assert results["model"] == "cifar"
    assert set(results["near_ood"]) == near | {"mean"}
    drawn = {part: open_images(folder / "drawn" / part) for part in ("train", "validation", "test", "near")}
    assert {part: len(images) for part, images in drawn.items()} == {
        "train": 50, "validation": 20, "test": 20, "near": 15
    }  # fmt: skip
    assert set(drawn["near"].classes) == near
    assert not near & set(json.loads((folder / "generated" / "settings.json").read_text())["ood_labels"])
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "drawn").rglob("*.png")}
    run(model="cifar", place=tmp_path)
    assert stamps == {path: path.stat().st_mtime_ns for path in (folder / "drawn").rglob("*.png")}


def test_model_that_no_images_go_with_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="the model is 'sd', but has to be one of"):
        job.quickstart(tmp_path / "out", model="sd")
    assert not (tmp_path / "out").exists()
