from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.detection.detector import Detector
from sona_pipeline.detection.scores import SCORES
from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.posthoc import POST_HOC
from sona_pipeline.evaluation.posthoc.base import Method
from sona_pipeline.evaluation.score_table import (
    TestSets,
    read_scores,
    results_of,
    score_columns,
    score_images,
    write_scores,
)

CLASSES = ("cat", "dog", "owl")


def pictures(count: int, seed: int, classes: tuple[str, ...] = CLASSES, broken: tuple[int, ...] = ()) -> ImageSet:
    """Noise of random brightness with keys, and with classes in turn; those in `broken` cannot be read."""
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, int(rng.integers(60, 256)), (16, 16, 3), dtype=np.uint8) for _ in range(count)]

    def read(index: int) -> Image.Image:
        if index in broken:
            raise OSError(f"picture {index} is torn")
        return Image.fromarray(arrays[index])

    labels = tuple(k % len(classes) for k in range(count)) if classes else ()
    return ImageSet(tuple(f"{seed}/{k}" for k in range(count)), labels, classes, read)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    detector = Detector(list(CLASSES), "resnet8", 16, temperature=2.0)
    detector.network.head.weight.data.mul_(5)
    return detector.eval()


def sets(**changes) -> TestSets:
    parts = {"near": {"fox": pictures(5, 2, ())}, "far": {"sky": pictures(6, 3, ()), "sea": pictures(4, 4, ())}}
    return TestSets(pictures(9, 1), **parts | changes)


@pytest.fixture
def calls(detector, monkeypatch) -> list[int]:
    """Sizes of the batches that pass the network."""
    seen = []
    forward = type(detector.network).forward
    monkeypatch.setattr(
        type(detector.network), "forward", lambda self, pixels: seen.append(len(pixels)) or forward(self, pixels)
    )
    return seen


@pytest.fixture
def post_hoc(monkeypatch) -> list[list[torch.Tensor]]:
    """A stand-in for the post-hoc scores: `distance` to the mean of the ID images, with a gradient on the way."""
    fits = []

    def fit(known):
        passes = [[(seen.pixels, labels) for seen, labels in known.training_images()] for _ in range(2)]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(*passes))
        fits.append([torch.cat(parts) for parts in zip(*passes[0])])
        mean = fits[-1][0].mean(dim=0)

        def score(seen):
            with torch.enable_grad():
                pixels = seen.pixels.clone().requires_grad_()
                (slope,) = torch.autograd.grad(pixels.square().sum() / 2, pixels)
            return (slope - mean).square().mean(dim=(1, 2, 3))

        return score

    monkeypatch.setitem(POST_HOC, "distance", Method(fit, needs_images=True))
    return fits


def one_by_one(detector: Detector, images: ImageSet) -> torch.Tensor:
    """Logits of the images, each in a batch of its own and decoded without the detector's help."""
    whole = [torch.from_numpy(np.array(images.image(i))).permute(2, 0, 1)[None] / 255 for i in range(len(images))]
    with torch.no_grad():
        return torch.cat([detector(pixels) for pixels in whole])


def test_a_row_an_image_with_the_scores_of_a_slow_reference(detector):
    test_sets = sets(covariate={"sketch": pictures(3, 5)})
    table = score_images(detector, test_sets, list(SCORES), batch_size=4, workers=2)
    parts = [
        ("id", "id", test_sets.id),
        ("covariate", "sketch", test_sets.covariate["sketch"]),
        ("near_ood", "fox", test_sets.near["fox"]),
        *(("far_ood", name, images) for name, images in test_sets.far.items()),
    ]
    names = [(group, name, key) for group, name, images in parts for key in images.keys]
    assert list(table[["group", "set", "key"]].itertuples(index=False, name=None)) == names
    assert table["label"].tolist() == [0, 1, 2] * 4 + [-1] * 15
    logits = torch.cat([one_by_one(detector, images) for _, _, images in parts])
    assert table["predicted"].tolist() == logits.argmax(dim=1).tolist()
    assert table["confidence"].tolist() == pytest.approx(logits.softmax(dim=1).amax(dim=1).tolist(), rel=1e-4)
    assert table["energy"].tolist() == pytest.approx((-2 * (logits / 2).exp().sum(dim=1).log()).tolist(), rel=1e-4)
    assert table["max_logit"].tolist() == pytest.approx((-logits.amax(dim=1)).tolist(), rel=1e-4)
    assert table.attrs["unreadable"] == []


def test_each_image_is_decoded_once_and_passes_the_network_once(detector, calls):
    opened = []
    images = pictures(9, 1)
    images = replace(images, _open=lambda i, read=images._open: opened.append(i) or read(i))
    score_images(detector, TestSets(images), ["energy", "msp", "max_logit"], batch_size=4)
    assert sorted(opened) == list(range(9))
    assert calls == [4, 4, 1]


def test_classes_count_by_name(detector):
    turned = pictures(9, 1).with_classes(["owl", "cat", "dog"])
    plain = score_images(detector, TestSets(pictures(9, 1)))
    table = score_images(detector, TestSets(turned)).set_index("key").loc[plain["key"]].reset_index()
    assert table["label"].tolist() == plain["label"].tolist()
    composed = Detector(["dog", "Caf\u00e9", "owl"], image_size=detector.image_size)
    apart = pictures(9, 1, ("Cafe\u0301", "dog", "owl"))
    table = score_images(composed, TestSets(apart)).set_index("key").loc[list(apart.keys)]
    assert table["label"].tolist() == [(1, 0, 2)[label] for label in apart.labels]
    few = pictures(8, 1, ("cat", "newt")).of_classes(["cat"])
    assert set(score_images(detector, TestSets(few))["label"]) == {0}
    with pytest.raises(ValueError, match=r"'sketch' has classes \['newt'\]"):
        score_images(detector, sets(covariate={"sketch": pictures(4, 1, ("cat", "newt"))}))


def test_images_that_cannot_be_read_are_passed_over_and_named(detector, post_hoc):
    torn = sets(near={"fox": pictures(5, 2, (), broken=(0, 1, 3))})
    fit = pictures(6, 7, broken=(4,))
    table = score_images(detector, torn, ["energy", "distance"], fit_images=fit, batch_size=2)
    assert table[table["set"] == "fox"]["key"].tolist() == ["2/2", "2/4"]
    assert table.attrs["unreadable"] == [
        {"group": "fit", "set": "fit", "key": "7/4", "reason": "picture 4 is torn"},
        *({"group": "near_ood", "set": "fox", "key": f"2/{k}", "reason": f"picture {k} is torn"} for k in (0, 1, 3)),
    ]
    assert post_hoc[0][1].tolist() == [0, 1, 2, 0, 2]
    whole = score_images(detector, sets())
    merged = table.merge(whole, on=["set", "key"])
    assert len(merged) == len(table)
    assert merged["energy_x"].tolist() == pytest.approx(merged["energy_y"].tolist(), rel=1e-4)
    with pytest.raises(ValueError, match="no image of 'fox' can be read; the first: picture 0 is torn"):
        score_images(detector, sets(near={"fox": pictures(3, 2, (), broken=(0, 1, 2))}))


def test_a_failing_disk_is_no_damaged_image(detector):
    def fail(index: int):
        raise OSError(5, "input/output error")

    with pytest.raises(OSError, match="input/output error"):
        score_images(detector, TestSets(replace(pictures(3, 1), _open=fail)))


def test_post_hoc_scores_are_fitted_to_training_images_in_the_order_of_the_classes(detector, post_hoc):
    fit = pictures(6, 7).with_classes(["dog", "owl", "cat"])
    table = score_images(detector, sets(), ["distance"], fit_images=fit, batch_size=4)
    arrays = np.stack([np.array(fit.image(i)) for i in range(6)]) / 255
    assert post_hoc[0][1].tolist() == [CLASSES.index(fit.label_name(i)) for i in range(6)]
    first = np.array(sets().id.image(0)) / 255
    assert table["distance"][0] == pytest.approx(((first - arrays.mean(axis=0)) ** 2).mean(), rel=1e-4)


def test_impossible_scores_are_refused_before_work(detector, calls, post_hoc):
    with pytest.raises(ValueError, match=r"no score is named 'enrgy': did you mean 'energy'"):
        score_images(detector, sets(), ["msp", "enrgy"])
    with pytest.raises(ValueError, match=r"no score is named '4711': choose from \['all', 'energy', .*'distance'\]"):
        score_images(detector, sets(), ["4711"])
    with pytest.raises(ValueError, match="give some"):
        score_images(detector, sets(), ["distance"])
    assert calls == []


@pytest.fixture
def odd_scores(monkeypatch) -> None:
    """Scores that fail in a fit, or give what is not finite, besides a good one."""

    def method(name):
        def fit(known):
            list(known.training_images())
            if name == "singular":
                raise torch.linalg.LinAlgError("the matrix is singular")
            if name == "greedy":
                raise torch.OutOfMemoryError("no memory")
            bad = {"good": 0.0, "nan": float("nan"), "inf": float("inf")}[name]
            return lambda seen: torch.where(seen.pixels.mean(dim=(1, 2, 3)) < 0.2, bad, 1.0)

        return Method(fit, needs_images=True)

    for name in ("singular", "greedy", "good", "nan", "inf"):
        monkeypatch.setitem(POST_HOC, name, method(name))


def test_scores_that_fail_or_are_not_finite_are_left_out_or_refused(detector, calls, odd_scores):
    fit, names = pictures(6, 7), ["energy", "singular", "good", "nan", "inf"]
    table = score_images(detector, sets(), names, fit_images=fit, skip_unfit=True)
    assert score_columns(table) == ["energy", "good"]
    reasons = {row["score"]: row["reason"] for row in table.attrs["unfit"]}
    assert set(reasons) == {"singular", "nan", "inf"} and reasons["singular"] == "the matrix is singular"
    dark = [np.array(sets().id.image(i)).mean() / 255 < 0.2 for i in range(9)]
    assert any(dark) and reasons["nan"] == f"{sum(dark)} images of 'id' have no finite value; leave it out"
    calls.clear()
    again = score_images(detector, sets(), names[:3], fit_images=fit, skip_unfit=True, known=table)
    pd.testing.assert_frame_equal(again, table)
    assert calls == [] and [row["score"] for row in again.attrs["unfit"]] == ["singular"]
    more = score_images(detector, sets(), [*names, "msp"], fit_images=fit, skip_unfit=True, known=table)
    assert score_columns(more) == ["energy", "good", "msp"]
    with pytest.raises(ValueError, match="the score singular cannot be fitted: the matrix is singular"):
        score_images(detector, sets(), names, fit_images=fit)
    with pytest.raises(ValueError, match=r"the score inf cannot be used: \d images of 'id' have no finite value"):
        score_images(detector, sets(), ["energy", "inf"], fit_images=fit)
    with pytest.raises(ValueError, match="the score nan cannot be used"):
        score_images(detector, sets(), ["nan", "inf"], fit_images=fit, skip_unfit=True)
    with pytest.raises(torch.OutOfMemoryError):
        score_images(detector, sets(), ["greedy"], fit_images=fit, skip_unfit=True)


def test_impossible_sets_are_refused():
    images, bare = pictures(3, 1), pictures(3, 1, ())
    for groups in ({"near": {"a": bare}, "far": {"a": bare}}, {"near": {"mean": bare}}, {"covariate": {"id": images}}):
        with pytest.raises(ValueError, match="names of test sets"):
            TestSets(images, **groups)
    with pytest.raises(ValueError, match="'a' is empty"):
        TestSets(images, far={"a": pictures(0, 1, ())})
    with pytest.raises(ValueError, match="'id' have no classes"):
        TestSets(bare)
    with pytest.raises(ValueError, match="'a' have no classes"):
        TestSets(images, covariate={"a": bare})


def test_known_scores_are_reused_and_the_result_is_that_of_a_fresh_run(detector, calls, post_hoc, tmp_path):
    torn = sets(near={"fox": pictures(5, 2, (), broken=(3,))})
    names, fit = ["energy", "msp", "distance"], pictures(6, 7)
    fresh = score_images(detector, torn, names, fit_images=fit, batch_size=32)
    write_scores(tmp_path / "scores.parquet", score_images(detector, torn, names[:1], batch_size=32))
    known = read_scores(tmp_path / "scores.parquet")
    known.loc[0, "energy"] = 123.0
    calls.clear()
    table = score_images(detector, torn, names, fit_images=fit, known=known, batch_size=32)
    assert calls == [9, 4, 6, 4]
    assert table["energy"][0] == 123.0
    table.loc[0, "energy"] = fresh["energy"][0]
    pd.testing.assert_frame_equal(table, fresh)
    assert table.attrs == fresh.attrs
    calls.clear()
    pd.testing.assert_frame_equal(score_images(detector, torn, names, known=table), table)
    assert calls == []


def test_an_image_that_a_list_has_twice_counts_twice(detector):
    once = pictures(5, 2, ())
    twice = once.take([0, 1, 2, 3, 4, 1])
    fresh = score_images(detector, sets(near={"fox": twice}), ["energy", "msp"])
    known = score_images(detector, sets(near={"fox": twice}), ["energy"])
    pd.testing.assert_frame_equal(score_images(detector, sets(near={"fox": twice}), ["msp"], known=known), fresh)
    values = score_images(detector, sets(near={"fox": once}), ["msp"]).query("set == 'fox'")["msp"].tolist()
    assert fresh.query("set == 'fox'")["msp"].tolist() == pytest.approx([*values, values[1]], rel=1e-6)


def test_known_scores_of_other_images_are_refused(detector):
    known = score_images(detector, sets())
    for other in (sets(near={}), sets(near={"fox": pictures(6, 2, ())}), sets(near={"fox": pictures(5, 8, ())})):
        with pytest.raises(ValueError, match="are of other images"):
            score_images(detector, other, ["msp"], known=known)
    with pytest.raises(ValueError, match="are of other images"):
        score_images(Detector(["owl", "dog", "cat"], "resnet8", 16), sets(), ["msp"], known=known)


def test_tables_are_stored_for_pandas_and_datasets(detector, tmp_path):
    import datasets

    table = score_images(detector, sets(near={"fox": pictures(3, 2, (), broken=(1,))}), ["msp"])
    write_scores(tmp_path / "scores.parquet", table)
    again = read_scores(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs["unreadable"] == [
        {"group": "near_ood", "set": "fox", "key": "2/1", "reason": "picture 1 is torn"}
    ]
    assert datasets.Dataset.from_parquet(str(tmp_path / "scores.parquet"))["msp"][:] == table["msp"].tolist()
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="has no columns"):
        read_scores(tmp_path / "other.parquet")


def drawn_table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = [("id", "id", 80, 0.0), ("covariate", "sketch", 40, 0.5), ("covariate", "fog", 20, 0.9)]
    parts += [("near_ood", "fox", 50, 1.0), ("near_ood", "elk", 30, 0.7), ("far_ood", "sky", 60, 2.0)]
    rows = []
    for group, name, count, centre in parts:
        label = rng.integers(0, 3, count) if group in ("id", "covariate") else np.full(count, -1)
        columns = {"group": group, "set": name, "key": [f"{name}{k}" for k in range(count)], "label": label}
        columns |= {"predicted": rng.integers(0, 3, count), "confidence": 0.5, "energy": rng.normal(centre, 1, count)}
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def test_results_are_those_of_scikit_learn():
    table = drawn_table()
    energies = {name: part["energy"].to_numpy() for name, part in table.groupby("set")}
    results = results_of(table, "energy")
    for known, found in (
        (energies["id"], results),
        (np.r_[energies["id"], energies["sketch"], energies["fog"]], results["full_spectrum"]),
    ):
        areas = {}
        for name in ("fox", "elk", "sky"):
            truth = np.r_[np.zeros(len(known)), np.ones(len(energies[name]))]
            areas[name] = 100 * roc_auc_score(truth, np.r_[known, energies[name]])
            group = "far_ood" if name == "sky" else "near_ood"
            assert found[group][name]["auroc"] == pytest.approx(areas[name])
            assert found[group][name] == ood_metrics(known, energies[name])
        assert found["near_ood"]["mean"]["auroc"] == pytest.approx((areas["fox"] + areas["elk"]) / 2)
        assert found["far_ood"]["mean"] == pytest.approx(found["far_ood"]["sky"])
        assert list(found["near_ood"]) == ["fox", "elk", "mean"]


def test_results_agree_with_pytorch_ood():
    """Whose FPR@95 and precision-recall curves take OOD as positive too, but step where ours follow the trapezoid."""
    peer = pytest.importorskip("pytorch_ood.metrics").OODMetrics()
    table = drawn_table()
    rows = table[table["set"].isin(["id", "fox"])]
    peer.update(*(torch.tensor(rows[column].to_numpy()) for column in ("energy", "label", "predicted")))
    theirs = {name: 100 * value for name, value in peer.compute().items()}
    results = results_of(table, "energy")
    fox = results["near_ood"]["fox"]
    assert fox["auroc"] == pytest.approx(theirs["AUROC"])
    assert fox["fpr95"] == pytest.approx(theirs["FPR95TPR"], abs=3)
    assert fox["aupr_in"] == pytest.approx(theirs["AUPR-IN"], abs=0.5)
    assert fox["aupr_out"] == pytest.approx(theirs["AUPR-OUT"], abs=0.5)
    assert results["id_accuracy"] == pytest.approx(theirs["ACC"])


def test_full_spectrum_by_hand():
    rows = [
        ("id", "id", 0, 0, 1.0),
        ("id", "id", 1, 1, 2.0),
        ("covariate", "fog", 0, 1, 3.0),
        ("covariate", "fog", 0, 0, 6.0),
        ("covariate", "ice", 1, 0, 8.0),
        ("near_ood", "fox", -1, 0, 5.0),
        ("near_ood", "fox", -1, 1, 7.0),
    ]
    table = pd.DataFrame(rows, columns=["group", "set", "label", "predicted", "energy"])
    results = results_of(table, "energy", threshold=1.5)
    full = results["full_spectrum"]
    assert (results["id_accuracy"], results["id_flagged"]) == (100, 50)
    assert results["near_ood"]["fox"]["auroc"] == 100
    assert results["far_ood"] == full["far_ood"] == {}
    assert full["id_accuracy"] == pytest.approx(60)
    assert full["accuracy"] == {"fog": 50, "ice": 0}
    assert full["near_ood"]["fox"]["auroc"] == pytest.approx(100 * (3 + 4) / 10)
    assert full["near_ood"]["fox"]["fpr95"] == pytest.approx(40)
    assert "full_spectrum" not in results_of(table[table["group"] != "covariate"], "energy")


def test_a_score_that_the_table_lacks_is_refused():
    with pytest.raises(ValueError, match=r"no score 'msp': it has \['energy'\]"):
        results_of(drawn_table(), "msp")
    with pytest.raises(ValueError, match="no score 'label'"):
        results_of(drawn_table(), "label")
