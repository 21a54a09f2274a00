import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from shapes import damaged, shapes

from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.detection.scores import SCORES
from sona_pipeline.evaluation import score_table
from sona_pipeline.evaluation.evaluate import evaluate_detectors
from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.posthoc import POST_HOC, Known, Seen, fitted
from sona_pipeline.evaluation.posthoc.search import candidates
from sona_pipeline.evaluation.score_table import TestSets


@pytest.fixture(scope="module")
def sets() -> TestSets:
    return TestSets(
        damaged(shapes(["horizontal", "vertical"], 40, seed=0), 7),
        near={"diagonal": shapes(["diagonal"], 30, seed=1, labelled=False)},
        far={"same": shapes(["vertical"], 20, seed=2, labelled=False)},
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[tuple[str, str]]:
    """Two random detectors of one method, and one of another with another score."""
    root = tmp_path_factory.mktemp("détecteurs")
    made = []
    for number, (name, score) in enumerate([("one", "energy"), ("one", "energy"), ("other one", "msp")]):
        torch.manual_seed(number)
        detector = Detector(["horizontal", "vertical"], image_size=16, score=score, threshold=-0.7)
        save_detector(detector, root / str(number))
        made.append((name, str(root / str(number))))
    return made


def test_report_has_the_metrics_of_the_stored_scores(folders, sets, tmp_path):
    found = evaluate_detectors(folders, sets, tmp_path)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["method"] for run in runs] == ["one", "one", "other one"]
    files = ["one-0", "one-1", "other one-0"]
    for run, name, score in zip(runs, files, ("energy", "energy", "msp")):
        stored = pd.read_parquet(tmp_path / "scores" / f"{name}.parquet")
        values = {key: part[score] for key, part in stored.groupby("set")}
        assert [len(values[key]) for key in ("id", "diagonal", "same")] == [39, 30, 20]
        results = run["results"][score]
        assert results["near_ood"]["diagonal"] == pytest.approx(ood_metrics(values["id"], values["diagonal"]))
        assert results["id_flagged"] == pytest.approx(100 * (values["id"] > -0.7).mean())
    aurocs = [run["results"]["energy"]["near_ood"]["mean"]["auroc"] for run in runs[:2]]
    rows = found[(found["method"] == "one") & (found["group"] == "near_ood") & (found["metric"] == "auroc")]
    assert rows["mean"].tolist() == pytest.approx([sum(aurocs) / 2] * 2)
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(row["detector"], row["key"]) for row in rejects] == [(name, "0-7") for name in files]


def test_detectors_in_memory_are_scored_as_those_in_folders(folders, sets, tmp_path):
    loaded = [(name, load_detector(folder, "cpu")) for name, folder in folders]
    found = evaluate_detectors(loaded, sets, tmp_path / "memory", leaderboard="cifar10")
    pd.testing.assert_frame_equal(found, evaluate_detectors(folders, sets, tmp_path / "folders"))


def test_scores_that_are_there_are_not_computed_again(folders, sets, tmp_path, monkeypatch):
    first = evaluate_detectors(folders[:1], sets, tmp_path, ["energy", "msp"])
    computed = []
    scored = score_table._scored
    monkeypatch.setattr(score_table, "_scored", lambda *a: computed.append(a[3]) or scored(*a))
    again = evaluate_detectors(folders[:1], sets, tmp_path, ["energy", "msp"])
    pd.testing.assert_frame_equal(first, again)
    assert not computed
    more = evaluate_detectors(folders[:1], sets, tmp_path, ["energy", "max_logit"])
    assert {tuple(scores) for scores in computed} == {("max_logit",)}
    assert set(more["score"]) == {"energy", "max_logit"}
    stored = pd.read_parquet(tmp_path / "scores" / "one-0.parquet")
    assert {"energy", "msp", "max_logit"} <= set(stored.columns)


def test_differences_from_a_baseline_stand_in_the_report(folders, sets, tmp_path):
    methods = [("one", folders[0][1]), ("two", folders[1][1])]
    found = evaluate_detectors(methods, sets, tmp_path, ["energy", "msp"], baseline="one")
    rows = pd.read_csv(tmp_path / "differences.csv")
    assert (set(rows["method"]), set(rows["score"])) == ({"two"}, {"energy", "msp"})
    means = found[(found["score"] == "msp") & (found["set"] == "diagonal") & (found["metric"] == "fpr95")]["mean"]
    row = rows[(rows["score"] == "msp") & (rows["set"] == "diagonal") & (rows["metric"] == "fpr95")].iloc[0]
    assert row["difference"] == pytest.approx(means.iloc[1] - means.iloc[0])
    line = f"| two | msp | near-OOD diagonal | FPR@95 | {row['difference']:+.2f} |"
    assert "## Differences from one" in (text := (tmp_path / "results.md").read_text()) and line in text


@pytest.mark.parametrize(
    ("baseline", "message"), [("none", "none of the methods"), ("one", "'other one' has 1 detectors and the baseline")]
)
def test_baseline_that_nothing_can_be_compared_with_is_refused_at_once(folders, sets, tmp_path, baseline, message):
    with pytest.raises(ValueError, match=message):
        evaluate_detectors(folders, sets, tmp_path / "out", baseline=baseline)
    assert not (tmp_path / "out").exists()
    others = [folders[0], folders[2]]
    with pytest.raises(ValueError, match="no score in common"):
        evaluate_detectors(others, sets, tmp_path / "other", baseline="one")


def test_differences_are_of_detectors_of_the_same_seeds(folders, sets, tmp_path):
    def of_seeds(name, *seeds):
        for k, seed in enumerate(seeds):
            shutil.copytree(folders[k][1], place := tmp_path / f"{name}-{k}")
            (place / "training.json").write_text(json.dumps({"seed": seed}))
            yield name, str(place)

    base, same, other = list(of_seeds("base", 0, 1)), list(of_seeds("same", 0, 1)), list(of_seeds("other", 1, 0))
    with pytest.raises(ValueError, match=r"'other' have the seeds \[1, 0\] and those of the baseline 'base' \[0, 1\]"):
        evaluate_detectors([*base, *other], sets, tmp_path / "out", baseline="base")
    assert not (tmp_path / "out").exists()
    evaluate_detectors([*base, *other], sets, tmp_path / "out")
    (tmp_path / "same-1" / "training.json").unlink()  # a seed that is not known counts as the same
    evaluate_detectors([*base, *same], sets, tmp_path / "same", baseline="base")


def test_list_of_rejects_goes_when_there_are_none(folders, sets, tmp_path):
    whole = replace(sets, id=shapes(["horizontal", "vertical"], 40, seed=0))
    (tmp_path / "rejects.jsonl").write_text('{"score": "gram"}\n')
    evaluate_detectors(folders[:1], whole, tmp_path)
    assert not (tmp_path / "rejects.jsonl").exists()


def test_folder_of_another_detector_or_other_images_is_refused(folders, sets, tmp_path):
    evaluate_detectors(folders[:1], sets, tmp_path)
    with pytest.raises(ValueError, match="made with other settings: detector"):
        evaluate_detectors([("one", folders[1][1])], sets, tmp_path)
    with pytest.raises(ValueError, match="made with other settings: images"):
        evaluate_detectors(folders[:1], replace(sets, far={}), tmp_path)


def test_bad_input_is_refused_before_anything_is_written(folders, sets, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="no score is named 'dream'"):
        evaluate_detectors(folders, sets, output, ["energy", "dream"])
    with pytest.raises(ValueError, match="fitted to labelled ID training images"):
        evaluate_detectors(folders, sets, output, ["knn"])
    with pytest.raises(FileNotFoundError, match="holds no detector"):
        evaluate_detectors([*folders, ("none", str(tmp_path))], sets, output)
    with pytest.raises(ValueError, match="cannot be the name of a method"):
        evaluate_detectors([("../up", folders[0][1])], sets, output)
    assert not output.exists()


def test_failed_first_try_does_not_hold_up_the_next(folders, sets, tmp_path):
    with pytest.raises(ValueError, match="which the detector does not know"):
        evaluate_detectors(folders[:1], replace(sets, id=shapes(["diagonal"], 4, seed=0)), tmp_path)
    assert len(evaluate_detectors(folders[:1], sets, tmp_path))


def test_all_scores_are_those_that_the_network_allows(sets, tmp_path):
    train = shapes(["horizontal", "vertical"], 60, seed=5)
    fits = {"fit_images": train, "validation_images": train}
    for network in ("resnet8", "timm:resnet10t"):
        torch.manual_seed(0)
        save_detector(Detector(["horizontal", "vertical"], network, 16), tmp_path / network)
        output = tmp_path / f"{network}-out"
        found = evaluate_detectors([("one", str(tmp_path / network))], sets, output, ["all"], **fits)
        rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
        left_out = {row["score"]: row["reason"] for row in rejects if "score" in row}
        assert set(found["score"]) == {*SCORES, *POST_HOC} - set(left_out)
        by_stages = {score for score, reason in left_out.items() if "stages" in reason}
        assert by_stages == (set() if network == "resnet8" else {"multi_mahalanobis", "mds_ensemble", "rankfeat"})
        assert len(found["score"].unique()) > 18


def test_post_hoc_scores_are_fitted_to_training_and_validation_images(folders, sets, tmp_path):
    train, held_out = shapes(["horizontal", "vertical"], 60, seed=5), shapes(["horizontal", "vertical"], 30, seed=6)
    names = ["temperature_scaling", "knn"]
    fits = {"fit_images": train, "validation_images": held_out}
    evaluate_detectors(folders[:1], sets, tmp_path / "both", names, **fits)
    evaluate_detectors(folders[:1], sets, tmp_path / "swapped", names, fit_images=held_out, validation_images=train)
    evaluate_detectors(folders[:1], sets, tmp_path / "train", names, fit_images=train)
    both, swapped, alone = (
        pd.read_parquet(tmp_path / part / "scores" / "one-0.parquet") for part in ("both", "swapped", "train")
    )
    assert (both["knn"] == alone["knn"]).all() and (both["knn"] != swapped["knn"]).any()
    assert (swapped["temperature_scaling"] == alone["temperature_scaling"]).all()
    assert (both["temperature_scaling"] != alone["temperature_scaling"]).any()


def test_searched_parameters_are_chosen_by_validation_images_and_stand_in_the_results(folders, sets, tmp_path):
    train, held_out = shapes(["horizontal", "vertical"], 60, seed=5), shapes(["horizontal", "vertical"], 30, seed=6)
    unknown = shapes(["diagonal"], 30, seed=7, labelled=False)
    fits = {"fit_images": train, "validation_images": held_out}
    names = ["energy", "gen", "nci", "entropy"]
    evaluate_detectors(folders[:1], sets, tmp_path, names, **fits)
    plain = pd.read_parquet(tmp_path / "scores" / "one-0.parquet")
    evaluate_detectors(folders[:1], sets, tmp_path, names, **fits, search_images=unknown)
    searched = pd.read_parquet(tmp_path / "scores" / "one-0.parquet")
    (run,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    detector = load_detector(folders[0][1], "cpu")

    def batch(images):
        return [(detector.pixels(images.image(i) for i in range(len(images))), torch.tensor(images.labels))]

    known = Known(detector, batch(train), batch(held_out))
    unknown_images = Seen(known.detector, detector.pixels(unknown.image(i) for i in range(30)))
    for name in ("gen", "nci"):
        aurocs = []
        for parameters in candidates(name):
            score = fitted(name, known, **parameters)
            parts = [score(Seen(known.detector, batch(held_out)[0][0])), score(unknown_images)]
            aurocs.append((ood_metrics(*(part.numpy() for part in parts))["auroc"], parameters))
        best = max(auroc for auroc, _ in aurocs)
        assert run["results"][name]["validation_auroc"] == pytest.approx(best)
        assert run["results"][name]["parameters"] in [p for auroc, p in aurocs if auroc == pytest.approx(best)]
    assert (plain["entropy"] == searched["entropy"]).all() and (plain["energy"] == searched["energy"]).all()
    assert "validation_auroc" not in run["results"]["entropy"] and "parameters" not in run["results"]["energy"]
    assert "by search on validation images" in (tmp_path / "results.md").read_text()
    evaluate_detectors(folders[:1], sets, tmp_path, names, **fits)
    again = pd.read_parquet(tmp_path / "scores" / "one-0.parquet")
    pd.testing.assert_frame_equal(again[plain.columns], plain)
    assert "by search" not in (tmp_path / "results.md").read_text()


def test_scores_fitted_to_other_images_are_computed_again(folders, sets, tmp_path):
    for seed in (5, 6):
        train = shapes(["horizontal", "vertical"], 60, seed=seed)
        renamed = replace(train, keys=tuple(f"{seed}/{key}" for key in train.keys))
        evaluate_detectors(folders[:1], sets, tmp_path / "both", ["knn", "energy"], fit_images=renamed)
    evaluate_detectors(folders[:1], sets, tmp_path / "fresh", ["knn", "energy"], fit_images=renamed)
    both, fresh = (pd.read_parquet(tmp_path / part / "scores" / "one-0.parquet") for part in ("both", "fresh"))
    assert (both["knn"] == fresh["knn"]).all()


def test_a_search_without_id_validation_images_is_refused(folders, sets, tmp_path):
    images = shapes(["horizontal", "vertical"], 60, seed=5)
    with pytest.raises(ValueError, match="labelled ID images that were not trained on"):
        evaluate_detectors(folders, sets, tmp_path / "x", ["gen"], fit_images=images, search_images=images)
    assert not (tmp_path / "x").exists()


def test_names_of_openood_are_taken_for_ours(folders, sets, tmp_path):
    found = evaluate_detectors(
        folders[:1], sets, tmp_path, ["ebo", "ash", "mls"], fit_images=shapes(["horizontal", "vertical"], 60, seed=5)
    )
    assert list(found["score"].unique()) == ["energy", "ash_b", "max_logit"]
