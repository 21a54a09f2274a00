"""The CIFAR-10 benchmark: ways to make outliers, the judge, the split of the data, and a table from end to end."""

import json
import math
import re
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from benchmark_modules import modules_of
from PIL import Image
from steps import exposure, network, step
from tiny_pipelines import build
from warm_python import package_python

from sona_pipeline import (
    METHODS,
    SCHEDULERS,
    TINY_MODEL,
    Detector,
    GenerationSettings,
    ImageSet,
    SONAPipeline,
    TrainingSettings,
    only_run,
    open_images,
    open_outlier_set,
    sample,
)
from sona_pipeline.detection.detector import load_detector
from sona_pipeline.detection.scores.of_logits import energy
from sona_pipeline.evaluation.posthoc import POST_HOC, Known, Seen, fitted

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks" / "cifar10"
ID = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KNOWN = ("aquarium_fish", "baby", "bear", "beaver", "bee", "bicycle", "bowl")
SETTINGS = GenerationSettings(("wolf", "rose", "oak"), prompt="a {}", num_inference_steps=4, seed=3)


@pytest.fixture(scope="module")
def bench():
    with modules_of(FOLDER) as modules:
        yield modules


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(6)]
    return ImageSet(tuple(f"{k}.png" for k in range(6)), (0, 1) * 3, ("cat", "dog"), pictures.__getitem__)


MAKING = SimpleNamespace(of=lambda stem, made, make: make(), has=lambda stem: False)
"""Records that keep nothing."""


def load(scheduler: str = "ddim") -> SONAPipeline:
    """A random pipeline with four latent channels."""
    pipe = SONAPipeline(**build())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(bench, folder: Path, images: ImageSet, **recipe):
    """What a recipe makes of the images: arrays of sources, outliers and round trips, and the metadata."""
    bench.sets.make_set(bench.sets.Recipe(**recipe), images, load, folder, SETTINGS)
    pairs = open_outlier_set(folder, images)
    arrays = [
        np.stack([np.asarray(some.image(i)) for i in range(len(some))]).astype(int)
        for some in (pairs.outliers, pairs.reconstructions)
    ]
    return *arrays, pd.read_json(folder / "outliers" / "metadata.jsonl", lines=True).set_index("source_key")


@pytest.fixture(scope="module")
def sona(bench, images, tmp_path_factory):
    return made(bench, tmp_path_factory.mktemp("sona") / "set", images)


def test_a_variant_with_nothing_changed_is_sona_generate(bench, images, sona, tmp_path):
    outliers, _, rows = made(bench, tmp_path / "set", images, options={"warmup_steps": 0})
    np.testing.assert_array_equal(outliers, sona[0])
    assert rows["sha256"].to_dict() == sona[2]["sha256"].to_dict()


@pytest.mark.parametrize("recipe", [{"options": {"global_guidance": True}}, {"round_trips": True}])
def test_every_variant_makes_the_same_plan(bench, images, sona, tmp_path, recipe):
    outliers, _, rows = made(bench, tmp_path / "set", images, **recipe)
    columns = ["ood_label", "stop_step", "seed"]
    assert rows[columns].to_dict() == sona[2][columns].to_dict()
    assert (outliers != sona[0]).any()


def test_round_trips_are_the_reconstructions(bench, images, tmp_path):
    outliers, reconstructions, _ = made(bench, tmp_path / "set", images, round_trips=True)
    np.testing.assert_array_equal(outliers, reconstructions)


def test_a_fixed_stop_step_is_that_of_all(bench, images, tmp_path):
    assert set(made(bench, tmp_path / "set", images, stop_step=2)[2]["stop_step"]) == {2}


def test_captions_name_two_labels(bench, images, tmp_path):
    said = set(made(bench, tmp_path / "set", images, captions=True)[2]["ood_label"])
    assert said <= {"a wolf and a rose", "a rose and a oak", "a oak and a wolf"}


def test_a_finished_set_is_not_made_again(bench, images, tmp_path):
    made(bench, tmp_path / "set", images)
    bench.sets.make_set(bench.sets.Recipe(), images, None, tmp_path / "set", SETTINGS)


def test_dynamic_thresholding_brings_back_what_is_out_of_range(bench, images, tmp_path, monkeypatch):
    scheduler = bench.sets.Thresholding(thresholding=True, sample_max_value=math.inf)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents[1] *= 8
    found, most = scheduler._threshold_sample(latents), latents[1].abs().quantile(0.995)
    torch.testing.assert_close(found[0], latents[0])
    torch.testing.assert_close(found[1], latents[1].clamp(-most, most) * bench.sets.LATENT_RANGE / most)
    outliers = {}
    for size in (4, 1024, 2048):
        monkeypatch.setattr(bench.sets, "LATENT_RANGE", size)
        outliers[size], *_ = made(bench, tmp_path / f"{size}", images, thresholding=True)
    assert (outliers[4] != outliers[1024]).any() and (outliers[1024] == outliers[2048]).all()


def test_methods_that_are_tried_are_what_they_are_called(bench):
    """The weight rises with the training to 2 at its end; a strength of 0.3 leaves 0.7 of the target to the label."""
    names = bench.methods.RISING, bench.methods.SOFTER
    rising, softer = (METHODS[name](network(), TrainingSettings()) for name in names)
    early, late = (rising(step(progress=progress)).item() for progress in (0.1, 0.9))
    plain = -step().outlier_logits.log_softmax(dim=1).mean().item()
    assert (early, late) == (pytest.approx(0.2 * plain), pytest.approx(1.8 * plain))
    pictures, strengths = torch.ones(2, 3, 4, 4), torch.tensor([0.3, 1])
    outliers, share = softer.expose(exposure(0 * pictures, pictures, strengths=strengths))
    assert (outliers == 1).all() and share.tolist() == pytest.approx([0.7, 0])
    at = step(id_share=share)
    target = torch.full((2, 3), 1 / 3)
    target[0] = 0.3 / 3
    target[0, at.labels[at.sources[0]]] += 0.7
    expected = -(target * at.outlier_logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert softer(at).item() == pytest.approx(expected.item())
    assert softer.keeps_pairs and softer.weight == 0.5


@pytest.mark.parametrize("scheduler", ["ddim", "unipc"])
def test_model_computes_in_bfloat16_and_steps_in_float32(bench, scheduler):
    pipe = bench.model.load_model(TINY_MODEL, scheduler)
    assert (pipe.unet.dtype, pipe.vae.dtype, pipe.latent_dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert type(pipe.scheduler) is SCHEDULERS[scheduler]
    peer = bench.model._drawing(pipe)
    prompt = {"prompt": "a photo of a bag", "num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    latents = peer(**prompt, output_type="latent").images
    assert latents.dtype == torch.float32 and latents.isfinite().all()


def judge_weights(path: Path, blocks: int) -> Path:
    """Random weights of a judge, named and packed as the published ones are."""
    torch.manual_seed(0)
    state, width = {}, 3
    for name, planes in [("conv1", 16), *_convolutions(blocks)]:
        state[f"{name}.weight"] = torch.randn(planes, width, 3, 3) / (3 * width**0.5)
        norm = name.replace("conv", "bn")
        state |= {f"{norm}.{key}": torch.ones(planes) for key in ("weight", "running_var")}
        state |= {f"{norm}.{key}": torch.zeros(planes) for key in ("bias", "running_mean")}
        width = planes
    state |= {"linear.weight": torch.randn(10, 64), "linear.bias": torch.zeros(10)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "best_prec1": 1.0}, path)
    return path


def _convolutions(blocks: int):
    for stage, planes in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            yield f"layer{stage}.{block}.conv1", planes
            yield f"layer{stage}.{block}.conv2", planes


def test_judge_has_the_parameters_of_the_paper(bench, tmp_path):
    for blocks, count in ((3, 269_722), (9, 853_018)):  # ResNet-20 and -56: 0.27 and 0.85 million (He et al. 2016)
        judge = bench.judge.Judge(judge_weights(tmp_path / "weights.th", blocks))
        assert sum(parameter.numel() for parameter in judge.parameters()) == count


def test_perceptual_distance_is_one_of_pairs(bench, tmp_path):
    judge = bench.judge.Judge(judge_weights(tmp_path / "weights.th", 3))
    rng = np.random.default_rng(0)
    some = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    others = [some[0], *some[:2]]
    found = judge.distances(some, others)
    assert found[0] == 0 and (found[1:] > 0).all() and (found <= 4).all()
    assert torch.allclose(found, judge.distances(others, some))
    assert len(judge.names(some)) == 3 and set(judge.names(some)) <= set(ID)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Parquet files named and built like the real ones, with few images."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(1)
    far = {"far-mnist": ((), 5), "far-dtd10": ((), 5)}
    sets = {"cifar10-train": (ID, 104), "cifar10-test": (ID, 3), "cifar100-aux-train": (KNOWN, 100)}
    for name, (classes, count) in {**sets, "cifar100-near-test": (("apple", "bed"), 4), **far}.items():
        labels = [k for k in range(max(1, len(classes))) for _ in range(count)]
        pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        features = {"image": datasets.Image()}
        columns = {"image": [Image.fromarray(one) for one in pixels]}
        if classes:
            features["label"], columns["label"] = datasets.ClassLabel(names=list(classes)), labels
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(folder / f"{name}.parquet")
    return folder


def test_no_image_serves_two_ends(bench, data):
    found = bench.data.open_data(data, 4)
    assert len(found.train) == 40 and len(found.validation) == 1000
    assert not set(found.train.keys) & set(found.validation.keys)
    assert found.near_validation.classes == ("aquarium fish", "bicycle")
    assert found.ood_labels == ("baby", "bear", "beaver", "bee", "bowl")
    assert {found.real_outliers.label_name(i) for i in range(len(found.real_outliers))} == set(found.ood_labels)
    with pytest.raises(ValueError, match="class 'airplane' has 4 images left for 5"):
        bench.data.open_data(data, 5)


def test_diffusion_set_has_all_images_and_spoken_names(bench, data, tmp_path):
    assert bench.data.write_diffusion_set(data, tmp_path / "set.parquet") == 1040 + 700
    labels = datasets.Dataset.from_parquet(str(tmp_path / "set.parquet"))["label"][:]
    assert set(labels) == {*ID, *(name.replace("_", " ") for name in KNOWN)}


@pytest.fixture
def fresh_accelerator():
    """No precision is settled yet in this process, nor afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def fewer(bench, monkeypatch):
    """Few validation images, since every score goes through them, and few steps and epochs."""
    few = {"id_images": lambda part: sample.id_images(part).drawn(20)}
    few["far_ood"] = lambda: {name: images.drawn(20) for name, images in sample.far_ood().items()}
    monkeypatch.setattr(bench.data, "sample", SimpleNamespace(**few))
    monkeypatch.setattr(bench.data, "VALIDATION_PER_CLASS", 10)
    monkeypatch.setattr(bench.far_kinds, "COUNT", 3)
    monkeypatch.setattr(bench.model, "DRAWING_STEPS", 2)
    monkeypatch.setattr(bench.benchmark.Benchmark, "recipe", replace(bench.benchmark.RECIPE, epochs=2))


def test_a_table_from_the_files_on(bench, data, tmp_path, fresh_accelerator, fewer, monkeypatch):
    def run(*arguments) -> None:
        bench.run.app([str(argument) for argument in arguments], exit_on_error=False, result_action="return_value")

    judge = judge_weights(tmp_path / "judge.th", 3)
    run("prepare", "--data", data, "--output", tmp_path)
    places = ("--output", tmp_path, "--results", tmp_path / "results", "--judge", judge)
    with monkeypatch.context() as patch:
        patch.setattr(bench.recipe.sys, "executable", package_python())
        patch.setitem(bench.recipe.BEFORE, "batch_size", 4)
        run("recipe", "before", *places, "--steps", 1, "--per-class", 1)
    assert "| before | " in (tmp_path / "results" / "recipe" / "results.md").read_text()
    (tmp_path / "recipe" / "before" / "model").rename(tmp_path / "model")
    run("model", *places, "--per-class", 1)
    assert Image.open(tmp_path / "results" / "model" / "sheet.png").size[0] > 32
    of_both = replace(bench.rows.TABLES["round-trips"], baselines=("with", "without"))
    monkeypatch.setitem(bench.rows.TABLES, "round-trips", of_both)
    table = ("table", "round-trips", "--data", data, *places, "--per-class", 2, "--seeds", 1)
    run(*table)
    folder = tmp_path / "results" / "round-trips-2"
    first = pd.read_csv(folder / "results.csv")
    assert set(first["test"]) == {"validation", "test"} and set(first["method"]) == {"with", "without"}
    assert set(first[first["test"] == "test"]["set"]) == {"cifar100", "mnist", "textures", "mean", "id"}
    notes = json.loads((folder / "run.json").read_text())
    assert notes["images"]["train"] == 20 and notes["seeds"] == [0]
    described = pd.read_csv(folder / "sets.csv")
    assert described["images"].tolist() == [20] and described["seed"].tolist() == [0]
    assert Image.open(folder / "results.png").size[0] > 300
    assert "| without | 1 |" in (text := (folder / "results.md").read_text())
    assert "## Differences from with" in text
    differences = pd.read_csv(folder / "differences.csv")
    means = first[(first["test"] == "test") & (first["set"] == "mnist") & (first["metric"] == "auroc")]["mean"]
    assert differences.groupby(["test", "set", "metric"]).size().max() == 1 and "far mean" in set(differences["set"])
    row = differences[(differences["test"] == "test") & (differences["set"] == "mnist")].iloc[0]
    assert row["row"] == "without" and row["difference"] == pytest.approx(means.iloc[1] - means.iloc[0], abs=0.06)
    turned = pd.read_csv(folder / "differences-without.csv")
    assert (turned["difference"] == -differences["difference"]).all() and set(turned["row"]) == {"with"}
    run("so-far", "round-trips", *places[2:4], "--per-class", 2)
    said = (folder / "so-far.md").read_text()
    is_near = (differences["test"] == "validation") & (differences["set"] == "near mean")
    near = differences[is_near & (differences["metric"] == "AUROC")]["difference"].item()
    assert "| with | 1 |" in said and re.search(rf"\| without, energy \| 1 \| {re.escape(f'{near:+.1f}')} \(", said)
    texts = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    made = tmp_path / "per-class-2"
    made.rename(tmp_path / "away")
    run(*table)  # from the records alone
    assert not made.exists() and texts == {path: path.read_bytes() for path in texts}
    (tmp_path / "away").rename(made)
    run("table", "remedies", *table[2:])
    folder = tmp_path / "results" / "remedies-2"
    found, reasons = pd.read_csv(folder / "results.csv"), pd.read_csv(folder / "reasons.csv")
    assert {*bench.remedies.REMEDIES, "energy", "mahalanobis_normalized"} <= set(found["score"])
    assert set(found[found["test"] == "validation"]["set"]) >= {"held-out classes", "clothing", "photos"}
    assert reasons["detector"].tolist() == [name for name in found["method"].unique() for _ in range(4)]
    assert (reasons["length"].astype(float) > 0).all() and reasons["sum / largest"].astype(float).between(1, 20).all()
    monkeypatch.setitem(bench.rows.TABLES, "detectors", bench.rows.TABLES["round-trips"])
    run("shortcuts", "--data", data, *places[:4], "--per-class", 2)
    folder = tmp_path / "results" / "shortcuts" / "validation"
    measured, aurocs = pd.read_csv(folder / "sets.csv"), pd.read_csv(folder / "changes.csv", index_col="row")
    assert {"ID", "outliers", "round trips", "real", "held-out classes", "faces"} <= set(measured["set"])
    rows = first[(first["test"] == "validation") & (first["method"] == "with") & (first["metric"] == "auroc")]
    near = rows[(rows["group"] == "near_ood") & (rows["set"] == "mean")]["mean"].iloc[0]
    assert aurocs.loc["with, near mean", "as they are"] == pytest.approx(near, abs=0.06)


def test_rows_that_are_named_come_with_those_they_are_compared_with(bench, tmp_path):
    table = bench.rows.Table("", dict.fromkeys("abcd", bench.rows.Row(None)), baselines=("b",))
    assert list(table.only(["d"]).rows) == ["b", "d"] and table.only(["d"]).baselines == ("b",)
    assert table.only(()) == table
    with pytest.raises(SystemExit, match="the table has no row 'e'; its rows: cross-entropy, SONA, "):
        bench.run.app(["table", "more-data", "--rows", "e", "--data", str(tmp_path)], exit_on_error=False)


def test_each_training_of_the_recipe_takes_back_one_change_and_is_shown_beside_the_whole(bench, tmp_path):
    recipe = bench.recipe
    for name in recipe.RECIPE:
        options = recipe.TRAININGS[name]
        assert [key for key, value in recipe.RECIPE.items() if options[key] != value] == [name]
    shares = {"recipe": 80.0, "batch_size": 64.0, "before": 50.0}
    for name, share in shares.items():
        folder = tmp_path / "recipe" / name
        folder.mkdir(parents=True)
        found = {"shares": {"all": share}, "minutes": None, "versions": {}}
        (folder / "judged.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match=r"diffusion.parquet is missing: the command 'prepare' makes it"):
        bench.run.app(["recipe", "--judge", "none", "--output", str(tmp_path)], exit_on_error=False)
    recipe.write_recipe(tmp_path, tmp_path / "results", "a command", 40)
    table = pd.read_csv(tmp_path / "results" / "recipe" / "recipe.csv", dtype=str, keep_default_na=False)
    assert table["training"].tolist() == ["recipe", "batch_size 64, not 128", "before"]
    assert table["drawn as asked"].tolist() == ["80.0 ± 2.0", "64.0 ± 2.4", "50.0 ± 2.5"]
    assert table["beside the recipe"].tolist() == ["", "-16.0", "-30.0"]


def test_what_is_recorded_so_far_is_shown_by_row_and_seed(bench, tmp_path):
    table = bench.rows.Table(
        "Some", dict.fromkeys(("a", "b", "c"), bench.rows.Row(None)), seeds=2, baselines=("a", "b")
    )

    def scores(shift: float) -> pd.DataFrame:
        groups = ["id"] * 4 + ["near_ood"] * 4
        columns = {"set": ["id"] * 4 + ["near"] * 4, "key": [*map(str, range(8))], "label": [0] * 4 + [-1] * 4}
        energies = [0.0, 1, 2, 3, *(k + shift for k in range(4))]
        return pd.DataFrame({"group": groups, **columns, "predicted": 0, "confidence": 1.0, "energy": energies})

    for name, shift in {"a-0": 0.5, "a-1": 0.5, "b-1": 10, "other-0": 1}.items():
        table_of_row = scores(shift)
        table_of_row.attrs = {bench.records.THRESHOLDS: {}}
        table_of_row.to_parquet(tmp_path / f"{name}.parquet")
    found = bench.so_far.recorded(tmp_path, table)
    assert {name: list(by_seed) for name, by_seed in found.items()} == {"a": [0, 1], "b": [1]}
    said = bench.so_far.text_so_far(table, found)
    assert "| a | 2 | 62.50 ± 0.00 |" in said and "| b | 1 | 100.00 |" in said
    assert re.search(r"\| b, energy \| 1 \| \+37.5 \(", said)


def test_folders_have_the_very_images_of_the_benchmark(bench, data, tmp_path):
    words = ["folders", "--data", str(data), "--output", str(tmp_path), "--per-class", "2"]
    bench.run.app(words, exit_on_error=False, result_action="return_value")
    opened = bench.data.open_data(data, 2)
    assert (tmp_path / "labels.txt").read_text().splitlines() == list(opened.ood_labels)
    for name, wanted in (("train", opened.train), ("validation", opened.validation)):
        found = open_images(tmp_path / name)
        assert found.classes == tuple(sorted(wanted.classes)) and len(found) == len(wanted)
        sets = [sorted((one.label_name(k), one.image(k).tobytes()) for k in range(len(one))) for one in (found, wanted)]
        assert sets[0] == sets[1]


def test_kept_rows_start_from_the_judge_and_are_calibrated_on_images_left_out_of_the_test(
    bench, data, tmp_path, fresh_accelerator, fewer, monkeypatch
):
    monkeypatch.setattr(bench.kept, "CALIBRATION_PER_CLASS", 1)
    opened = bench.data.open_data(data, 2)
    benchmark = bench.kept.with_judge(opened, tmp_path, 2, judge_weights(tmp_path / "judge.th", 3))
    parts = benchmark.data.validation.keys, benchmark.data.test.keys
    assert sorted(parts[0] + parts[1]) == sorted(opened.test.keys) and len(parts[0]) == 10
    pixels = torch.rand(3, 3, 32, 32)
    for training in (bench.kept.AS_IT_IS, {"epochs": 1, "learning_rate": 1e-9}):
        folder = benchmark.detector(bench.rows.Row(None, training), 0)
        found = load_detector(folder, "cpu", benchmark.classifier.network.own_module())
        assert found.threshold is not None and (folder / "seconds.txt").exists()
        with torch.no_grad():
            torch.testing.assert_close(found(pixels), benchmark.classifier(pixels), rtol=1e-3, atol=1e-3)

    whole = bench.rows.Row(None, {"epochs": 1, "learning_rate": 0.1, "max_accuracy_drop": None})
    monkeypatch.setattr(bench.kept, "UNBOUND", whole)
    table = bench.rows.TABLES["kept"]
    sets = benchmark.tests(table)["validation"]
    by_share = benchmark.by_share(sets, 1)
    as_it_is = bench.rows.Row(None, bench.kept.AS_IT_IS)
    ends = [("0%", benchmark.detector(as_it_is, 0)), ("100%", benchmark.detector(whole, 0))]
    wanted = benchmark.scores(ends, sets, "ends", ["energy"])
    assert list(by_share["method"].unique()) == ["0%", "25%", "50%", "75%", "100%"]
    found = by_share[by_share["method"].isin(["0%", "100%"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, wanted, check_exact=False, atol=0.1)
    start, half, end = (list(by_share.loc[by_share["method"] == name, "mean"]) for name in ("0%", "50%", "100%"))
    assert start != half != end
    words = ["shares", "--data", str(data), "--judge", str(tmp_path / "judge.th"), "--output", str(tmp_path)]
    words += ["--results", str(tmp_path / "shown"), "--per-class", "2", "--seeds", "1"]
    bench.run.app(words, exit_on_error=False, result_action="return_value")
    written, columns = pd.read_csv(tmp_path / "shown" / "kept-2" / "shares.csv"), ["method", "set", "metric", "mean"]
    pd.testing.assert_frame_equal(written[columns], by_share[columns], check_dtype=False)
    with pytest.raises(SystemExit, match="'kept' is of a classifier that others trained: give its weights as --judge"):
        bench.run.app(["table", "kept", "--data", str(data)], exit_on_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    detector = Detector(["cat", "dog", "owl"]).eval()
    detector.network.head.weight.data *= 20
    return detector


TRAIN, SEEN = (torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in (90, 12))
LABELS = torch.arange(90) % 3


@torch.no_grad()
def remedy(bench, monkeypatch, detector, name: str) -> torch.Tensor:
    """The score of `SEEN`, fitted to `TRAIN`."""
    monkeypatch.setitem(POST_HOC, name, bench.remedies.REMEDIES[name])
    return scored(name, detector, SEEN)


def scored(name: str, detector, pixels: torch.Tensor) -> torch.Tensor:
    known = Known(detector, list(zip(TRAIN.split(40), LABELS.split(40))))
    return fitted(name, known)(Seen(known.detector, pixels))


@torch.no_grad()
def test_multi_mahalanobis_normalized_is_that_of_unit_vectors(bench, monkeypatch, detector):
    maps, expected = (torch.cat([TRAIN, SEEN]) - detector.mean) / detector.std, 0
    for stage in detector.network.stages():
        maps = stage(maps)
        rows = maps.mean(dim=(2, 3)).double()
        rows = rows / rows.norm(dim=1, keepdim=True)
        known, seen = rows[:90], rows[90:]
        centers = torch.stack([known[label == LABELS].mean(dim=0) for label in range(3)])
        scatter = torch.cov((known - centers[LABELS]).T, correction=0) * 90 + 1e-6 * torch.eye(rows.shape[1])
        gaps = (seen[:, None] - centers).transpose(1, 2)
        expected = expected + (gaps * torch.linalg.solve(scatter, gaps)).sum(dim=1).amin(dim=1) / 2
    found = remedy(bench, monkeypatch, detector, "multi_mahalanobis_normalized")
    torch.testing.assert_close(found.double(), expected, rtol=5e-3, atol=1e-5)
    plain = scored("multi_mahalanobis", detector, SEEN)
    assert not torch.allclose(found, plain.to(found.dtype), rtol=0.05)


@torch.no_grad()
def test_kl_matching_sharp_has_templates_of_sharp_posteriors(bench, monkeypatch, detector):
    known, p = (detector(TRAIN) / 0.3).softmax(dim=1), detector(SEEN).softmax(dim=1)
    said = known.argmax(dim=1)
    templates = [known[said == label].mean(dim=0) for label in said.unique()]
    expected = torch.stack([(p * (p / template).log()).sum(dim=1) for template in templates]).amin(dim=0)
    found = remedy(bench, monkeypatch, detector, "kl_matching_sharp")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_ash_pruned_keeps_a_tenth_of_the_features_as_they_are(bench, monkeypatch, detector):
    features, head = detector.features(SEEN), detector.network.head
    least = features.sort(dim=1).values[:, [-13]]  # of 128
    expected = energy(head(torch.where(features >= least, features, 0)))
    torch.testing.assert_close(remedy(bench, monkeypatch, detector, "ash_pruned"), expected)


@torch.no_grad()
def test_energy_and_knn_count_alike(bench, monkeypatch, detector):
    expected = 0
    for score in (lambda pixels: energy(detector(pixels)), partial(scored, "knn", detector)):
        known = score(TRAIN)
        expected = expected + (score(SEEN) - known.mean()) / known.std()
    found = remedy(bench, monkeypatch, detector, "energy_and_knn")
    torch.testing.assert_close(found, expected.double(), rtol=1e-3, atol=1e-4)


def test_mixtures_and_filters_are_of_sets_of_the_same_images(bench, images, sona, tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = Detector(["cat", "dog"], "resnet8", 32).eval()
    places = {"unipc-12": tmp_path / "one", "classes-12": tmp_path / "two"}
    for place, label_seed in zip(places.values(), (3, 4)):
        bench.sets.make_set(bench.sets.Recipe(changes={"seed": label_seed}), images, load, place, SETTINGS)
    monkeypatch.setattr(bench.benchmark.Benchmark, "outliers", lambda self, name, seed: places[name])
    monkeypatch.setattr(bench.benchmark.Benchmark, "load", lambda self, place: calibrated)
    monkeypatch.setattr(bench.benchmark.Benchmark, "detector", lambda self, row, seed: tmp_path)
    benchmark = bench.benchmark.Benchmark(SimpleNamespace(train=images), tmp_path, 3)
    row = bench.rows.Row("unipc-12", also=("classes-12",))
    both = benchmark._training_sets(row, 0)[1]
    pictures = [both.outliers.image(k).tobytes() for k in range(len(both.outliers))]
    for k, place in enumerate(places.values()):
        alone = open_outlier_set(place, images).outliers
        assert pictures[k * len(images) : (k + 1) * len(images)] == [
            alone.image(i).tobytes() for i in range(len(alone))
        ]
    assert len(set(pictures)) == 2 * len(images)

    with torch.no_grad():
        logits, scores = network.scored(network.pixels([both.outliers.image(k) for k in range(len(images))]))
    shares, middle = logits.softmax(dim=1), scores.median()
    calibrated = network.calibrated(torch.cat([middle.repeat(97) - 0.001, scores.max().repeat(3) + 1]))
    own = shares[range(len(images)), both.images.labels]
    for name, stays in (
        ("rodeo", own <= 0.5),
        ("bad-ood", (shares.amax(1) >= 0.3) & (shares.amax(1) <= 0.5)),
        ("gcos", scores >= middle),  # 97 of 100 ID images are below the middle one, and none below a lower one
    ):
        pairs = benchmark._training_sets(replace(row, also=(), reject=name), 0)[1]
        assert [strength > 0 for strength in pairs.strengths] == stays.tolist() and len(pairs.images) == len(images)
    assert 0 < (own <= 0.5).sum() < len(images)


def test_tables_for_choices_have_no_test_images(bench, images):
    names = (*bench.rows.SHIPPED, *bench.rows.KINDS)
    data = SimpleNamespace(
        **dict.fromkeys(("validation", "near_validation", "test", "near_test"), images),
        far_validation=dict.fromkeys(names, images),
        far_test={"digits": images},
    )
    benchmark = bench.benchmark.Benchmark(data, Path("nowhere"), 3)
    kinds = {name: set(benchmark.tests(table)) for name, table in bench.rows.TABLES.items()}
    assert kinds.pop("worth") == kinds.pop("other-scores") == {"validation"}
    assert all(found == {"validation", "test"} for found in kinds.values())


def test_pipelines_of_others_that_do_not_run_are_reported(bench, images, tmp_path, monkeypatch):
    benchmark = bench.benchmark.Benchmark(SimpleNamespace(train=images, ood_labels=("wolf",)), tmp_path, 3)

    def fails(recipe, *others):
        raise RuntimeError("four channels")

    table = bench.rows.Table("", {"LEDITS++": bench.rows.Row("leditspp")})
    monkeypatch.setattr(bench.benchmark, "make_set", fails)
    monkeypatch.setattr(bench.benchmark, "load_model", lambda folder, scheduler: load())
    assert benchmark.scored(table, 1, {"test": ()}, MAKING) == (
        {"test": {}},
        {"LEDITS++": "RuntimeError: four channels"},
    )
    with pytest.raises(RuntimeError, match="four channels"):
        benchmark.scored(bench.rows.Table("", {"SONA": bench.rows.SONA}), 1, {"test": ()}, MAKING)


def test_a_set_is_described_with_the_first_seed_that_is_there(bench, tmp_path):
    benchmark = bench.benchmark.Benchmark(None, tmp_path, 3)
    assert benchmark.seed_of_set("sona", 3) == 0
    for name in ("sona-1", "sona-2", "sona-25-0"):
        (tmp_path / "per-class-3" / "sets" / name).mkdir(parents=True)
    for name in ("sona-2", "sona-25-0"):
        (tmp_path / "per-class-3" / "sets" / name / "seconds.txt").touch()
    assert benchmark.seed_of_set("sona", 3) == 2 and benchmark.seed_of_set("sona", 2) == 0


def test_two_runs_share_the_detectors_of_a_table(bench, images, tmp_path, monkeypatch):
    """Each goes on with what the other one is not at, and both end with everything."""
    table = bench.rows.Table("", {name: bench.rows.Row(None, {"epochs": k}) for k, name in enumerate("abc", 1)})
    benchmark = bench.benchmark.Benchmark(SimpleNamespace(train=images), tmp_path, 3)
    kept, made, threads = {}, [], []

    def of(stem, how, make):
        if stem not in kept:
            scores = make()
            time.sleep(0.1)  # while it is written
            kept[stem] = scores
        return kept[stem]

    def scored(table, row, seed, tests):
        number = row.training["epochs"]
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            done.wait(60)  # until the other run has made all else
        else:
            made.append((number, seed))
        return {"test": (number, seed)}

    records = SimpleNamespace(of=of, has=kept.__contains__)
    begun, done = threading.Event(), threading.Event()
    monkeypatch.setattr(benchmark, "_scored", scored)
    monkeypatch.setattr(bench.benchmark, "SECONDS_TO_WAIT", 0.01)
    said = []
    monkeypatch.setattr("builtins.print", lambda text: said.append(text) or done.set())
    other = threading.Thread(target=lambda: threads.append(benchmark.scored(table, 2, {"test": ()}, records)))
    other.start()
    begun.wait(60)
    mine = benchmark.scored(table, 2, {"test": ()}, records)
    other.join(60)
    assert made == [(2, 0), (3, 0), (1, 1), (2, 1), (3, 1)] and said == ["Another run is at a-0: waiting for it"]
    assert mine == threads[0] == ({"test": {"a": [(1, 0), (1, 1)], "b": [(2, 0), (2, 1)], "c": [(3, 0), (3, 1)]}}, {})


def test_fake_it_draws_with_the_model_stopped_early_or_has_no_row(bench, images, tmp_path, monkeypatch):
    benchmark, loaded = bench.benchmark.Benchmark(SimpleNamespace(train=images, ood_labels=("wolf",)), tmp_path, 3), []
    early = tmp_path / "model" / "early"
    monkeypatch.setattr(bench.benchmark, "load_model", lambda folder, scheduler: loaded.append(folder) or load())
    table = bench.rows.Table("", {"Fake-it": bench.rows.TABLES["systems"].rows["Fake-it"]})
    reason = f"{early} is missing: train the model with --early-steps, as README.md says"
    assert benchmark.scored(table, 1, {"test": ()}, MAKING) == ({"test": {}}, {"Fake-it": reason}) and not loaded
    early.mkdir(parents=True)
    sets = bench.rows.SETS
    assert sets["fakeit-25"].changes == {"way": "fakeit", "num_inference_steps": 25}
    monkeypatch.setitem(
        sets, "fakeit-25", replace(sets["fakeit-25"], changes={"way": "fakeit", "num_inference_steps": 2})
    )
    assert len(open_outlier_set(benchmark.outliers("fakeit-25", 0), images).outliers) == len(images)
    assert loaded == [early]


def test_second_run_waits_for_the_test_outliers_of_the_first(bench, images, tmp_path, monkeypatch):
    benchmark = bench.benchmark.Benchmark(SimpleNamespace(test=images), tmp_path, 3)
    monkeypatch.setattr(bench.benchmark, "NEAR_TEST_IMAGES", 2)
    monkeypatch.setattr(bench.benchmark, "SECONDS_TO_WAIT", 0.01)
    said, let_go = [], threading.Event()
    monkeypatch.setattr("builtins.print", lambda text: said.append(text) or let_go.set())

    def hold():
        with only_run(place):
            begun.set()
            let_go.wait(60)

    def make(name, found, folder, seed):
        with only_run(folder):
            made.append((name, len(found), folder))

    made, begun, place = [], threading.Event(), tmp_path / "per-class-3" / "sets" / "sona-of-test-images"
    monkeypatch.setattr(benchmark, "_make", make)
    first = threading.Thread(target=hold)
    first.start()
    begun.wait(60)
    assert benchmark.test_outliers() == place
    first.join(60)
    assert made == [("sona", 2, place)] and said == ["Another run is at sona-of-test-images: waiting for it"]
