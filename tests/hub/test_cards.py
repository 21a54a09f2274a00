"""Cards of repositories: what they claim is measured, their code runs, their metadata is what the Hub reads."""

import ast
import re
import shlex
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from sona_pipeline.cli.app import app
from sona_pipeline.detection.detector import Detector
from sona_pipeline.generation.inspection import Inspection
from sona_pipeline.hub import cards
from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline
from sona_pipeline.pipelines.families.stable_diffusion_xl import SONAXLPipeline

COUNT = 30
COLUMNS = ["image", "file_name", "source_key", "source_class", "ood_label", "stop_step", "latent_distance", "contrast"]
SETTINGS = {"model": "owner/diffusion", "num_inference_steps": 50, "prompt": "a photo of a {}", "seed": 3, "reject": []}
RUN = {
    "id_accuracy": 91.25,
    "id_flagged": 4.5,
    "near_ood": {name: {"auroc": 71.5, "fpr95": 60.0} for name in ("birds", "mean")},
    "far_ood": {},
}


@pytest.fixture
def found() -> Inspection:
    rng = np.random.default_rng(0)
    checks = {"latent_distance": rng.uniform(0, 2, COUNT), "contrast": rng.uniform(0, 0.5, COUNT)}
    counts = Counter({"cat": 10, "dog": 20}), Counter({"bag": COUNT}), Counter({7: COUNT})
    return Inspection(SETTINGS, *counts, checks, 2, Counter({"contrast < 0.05": 4}), [{}] * COUNT)


FACTS = cards.OutlierFacts(COLUMNS, (64, 48), False)


def outlier_card(found, facts=FACTS, **options):
    return cards.outlier_card("me/set", found, facts, **{"id_set": None, "near_ood": False, "licence": None} | options)


def detector(**settings) -> Detector:
    torch.manual_seed(0)
    return Detector(**{"classes": ["cat", "dog"], "image_size": 16, "threshold": -1.5} | settings)


TRAINING = {
    "method": "oe",
    "outliers": "digest",
    "mi_weight": 0.0,
    "pretrained": False,
    "epochs": 100,
    "batch_size": 256,
    "seed": 1,
    "id_rate": 0.95,
}


@pytest.fixture
def all_cards(found):
    trips = replace(FACTS, columns=[*COLUMNS, "reconstruction"])
    runs = [("SONA", {"energy": RUN})]
    return [
        cards.pipeline_card("me/sona", "owner/base", SONAPipeline, pointer=True, licence=None),
        cards.pipeline_card(
            "me/tiny", "tiny", SONAPipeline, pointer=False, licence="mit", notes="# A model\n\nOf this.", runs=runs
        ),
        cards.blocks_card("me/blocks", SONAPipeline, "owner/base"),
        cards.blocks_card("me/blocks", SONAXLPipeline, None),
        outlier_card(found),
        outlier_card(found, trips, near_ood=True, id_set="owner/animals", licence="cc-by-4.0"),
        cards.detector_card("me/detector", detector(), training=TRAINING, runs=runs),
    ]


def test_card_says_what_the_files_are(found):
    assert "| files | PNG; round trips" in str(outlier_card(found))
    for settings, said in (
        ({"codec": "webp", "save_size": None, "quality": None}, "| files | WebP without loss;"),
        (
            {"codec": "jpeg", "save_size": 224, "quality": 85, "notes": {"model_size": 512}},
            "| files | JPEG of quality 85, scaled down from 512 pixels by Lanczos' filter;",
        ),
    ):
        assert said in str(outlier_card(replace(found, settings=SETTINGS | settings)))


def metadata(card) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), re.DOTALL)[1])


def test_python_is_python_and_commands_have_their_options(all_cards):
    lines = []
    for card in all_cards:
        for kind, code in re.findall(r"```(\w+)\n(.*?)```", card.text, re.DOTALL):
            if kind == "python":
                ast.parse(code)
            elif kind == "sh":
                lines += code.strip().splitlines()
        lines += re.findall(r"`(sona [^`]*--[^`]*)`", card.text)
    assert len(lines) >= 2
    for line in lines:
        _, command, *words = shlex.split(line)
        known = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
        assert {word for word in words if word.startswith("--")} <= known


def test_raw_text_is_readable(all_cards):
    for card in all_cards:
        prose = re.sub(r"```.*?```", "(code)", card.text, flags=re.DOTALL)
        assert not [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")]
        assert "None" not in re.sub("None are given|None was", "", prose) and "{}" not in prose.replace("a {}", "")
        assert "\n\n\n" not in prose and not re.search(r"^ +\n| +$", prose, re.MULTILINE)


def test_quality_checks_are_the_quantiles_of_the_set(found):
    text = outlier_card(found).text
    for name, values in found.checks.items():
        ordered = np.sort(values)
        cells = re.search(rf"^\| `{name}` \| (.*) \|$", text.partition("## Quality checks")[2], re.MULTILINE)[1]
        for share, cell in zip((1, 10, 50, 90, 99), cells.split(" | ")):
            place = share / 100 * (COUNT - 1)  # between two of the ordered values
            low, rest = int(place), place - int(place)
            expected = ordered[low] * (1 - rest) + ordered[min(low + 1, COUNT - 1)] * rest
            assert float(cell) == pytest.approx(expected, rel=6e-3)
    assert "2 of them have the fingerprint" in text
    assert r"4 images have no outlier: contrast \< 0.05 (4)" in text


@pytest.mark.parametrize("near_ood, split", [(False, "train"), (True, "test")])
def test_split_of_an_outlier_set(near_ood, split, found):
    card = outlier_card(found, near_ood=near_ood, id_set="owner/animals")
    data = metadata(card)
    assert data["configs"] == [{"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*"}]}]
    assert data["source_datasets"] == ["extended|owner/animals"] and data["size_categories"] == "n<1K"
    assert f'load_dataset("me/set", split="{split}")' in card.text
    assert ("Use as a near-OOD test set" in card.text) == ("**Protocol.**" in card.text) == near_ood


def test_round_trips_are_spoken_of_where_there_are_some(found):
    trips = replace(FACTS, columns=[*COLUMNS, "reconstruction"])
    for near_ood in (False, True):
        options = {"near_ood": near_ood, "id_set": "some clothes"}
        assert "`reconstruction`" not in outlier_card(found, **options).text
        assert "`reconstruction`" in outlier_card(found, trips, **options).text
    assert "source_datasets" not in metadata(outlier_card(found, id_set="some clothes"))


def test_licences_are_those_given_and_none_is_made_up(found):
    for card in (outlier_card(found), cards.detector_card("me/d", detector())):
        assert "license" not in metadata(card) and "Its publisher states none" in card.text
    pointer = cards.pipeline_card("me/sona", "owner/base", SONAPipeline, pointer=True, licence=None)
    assert metadata(pointer)["license"] == "apache-2.0" and metadata(pointer)["base_model"] == "owner/base"
    assert "keep the licence" in pointer.text
    weights = cards.pipeline_card("me/sona", "a-folder", SONAPipeline, pointer=False, licence=None)
    assert not {"license", "base_model"} & metadata(weights).keys()
    assert metadata(outlier_card(found, licence="cc-by-4.0"))["license"] == "cc-by-4.0"


def test_names_cannot_break_tables_or_bring_markup(found):
    names = ["a | b", "<script>", "[x](y)", "two\nlines"]
    text = outlier_card(replace(found, classes=Counter(names)), id_set="a `set`").text
    row = next(line for line in text.splitlines() if line.startswith("| source classes"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert "two lines" in row and r"\<script\>" in row and r"\[x\]" in row
    many = [f"class{k:03d}" for k in range(100)]
    text = cards.detector_card("me/d", detector(classes=many)).text
    assert "100: class000" in text and "and 60 more" in text and "class050" not in text


def test_results_are_means_over_seeds_and_absent_without_runs():
    other = RUN | {"id_accuracy": 88.25}
    runs = [("SONA", {"energy": RUN, "msp": RUN}), ("SONA", {"energy": other, "msp": RUN})]
    card = cards.detector_card("me/d", detector(), runs=runs)
    assert "| ID | energy |  |  | 89.75 ± 2.12 | 4.50 ± 0.00 |" in card.text
    assert "over 2 seeds" in card.text
    pipeline = cards.pipeline_card("me/p", "a-folder", SONAPipeline, pointer=False, licence=None, runs=runs)
    assert "| ID | SONA | energy |  |  | 89.75 ± 2.12 | 4.50 ± 0.00 |" in pipeline.text
    values = {(e.dataset_name, e.metric_type): e.metric_value for e in card.data.eval_results}
    assert values == {("ID", "accuracy"): 89.75, ("near-OOD birds", "roc_auc"): 71.5, ("near-OOD birds", "fpr95"): 60.0}
    assert metadata(card)["model-index"][0]["name"] == "d"
    without = cards.detector_card("me/d", detector())
    assert "None are given" in without.text and "model-index" not in metadata(without)


def test_a_set_of_another_way_is_not_called_sonas(found):
    text = " ".join(outlier_card(replace(found, settings=SETTINGS | {"way": "cutpaste"})).text.split())
    assert (
        "They are not SONA's, but made to be compared with its outliers, by `sona generate --way cutpaste`: CutPaste"
        in text
    )
    assert "looks nearly like it" not in text and "by `sona generate --way cutpaste`. Each was made for one" in text
    assert "works region by region" not in text and "| way of making them | cutpaste |" in text
    assert "works region by region" in outlier_card(found).text


@pytest.mark.parametrize(
    "settings, training, said",
    [
        ({}, TRAINING, "threshold -1.5 is called OOD; it was chosen so that 95 % of the ID validation images"),
        ({}, None, "which share of ID images it was chosen to accept is not recorded"),
        ({"threshold": None}, TRAINING, "It has no threshold"),
        ({"id_rate": 0.99}, TRAINING, "it was chosen so that 99 % of the ID validation images"),
        ({"class_thresholds": [-1.0, None]}, TRAINING, "is taken for 1 of the classes has thresholds of their own"),
        ({}, TRAINING, "Trained by outlier exposure, from scratch, 100 epochs"),
        ({}, TRAINING | {"mi_weight": 1.0}, "Trained by outlier exposure with mutual information, from scratch"),
        ({}, TRAINING | {"outliers": None}, "Trained by cross-entropy, without outliers"),
        ({}, TRAINING | {"outliers": None, "method": "cider"}, "Trained by CIDER, from scratch"),
        ({}, TRAINING | {"method": "mine"}, "Trained by MINE, from scratch"),  # of somebody's own
        ({"crop_pct": 0.5}, None, "scaled to 32 x 32 pixels (Lanczos), of which the middle 16 x 16"),
        ({"score": "msp", "temperature": 2.0}, None, "`msp` at temperature 2"),
    ],
)
def test_what_a_detector_is(settings, training, said, found):
    text = cards.detector_card("me/d", detector(**settings), training=training).text
    assert said in " ".join(text.split())
