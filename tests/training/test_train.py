import json
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image
from shapes import beside, damaged, shapes
from stopped_training import stop_after
from torch import nn

from sona_pipeline.common.files import read_json_lines
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.images import open_images
from sona_pipeline.data.outlier_set import OutlierPairs
from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.detection.scores import SCORES
from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.training.items import TrainingSets
from sona_pipeline.training.loop import Training, mi_weight
from sona_pipeline.training.methods.outlier_exposure import outlier_exposure
from sona_pipeline.training.settings import RECIPES, Running, TrainingSettings, check_settings, settings_in
from sona_pipeline.training.start import new_detector
from sona_pipeline.training.train import check_training, train_detector

SETTINGS = replace(RECIPES["small"], image_size=16, epochs=4, batch_size=16, flip=False)


@torch.no_grad()
def logits_of(detector: Detector, images: ImageSet) -> torch.Tensor:
    return detector.eval()(detector.pixels(images.image(i) for i in range(len(images))))


def auroc(detector: Detector, score: str = "energy") -> float:
    """Of unseen diagonal bars against unseen ID images."""
    known, unknown = shapes(["horizontal", "vertical"], 100, seed=3), shapes(["diagonal"], 100, seed=4)
    return ood_metrics(*(SCORES[score](logits_of(detector, images), 1.0) for images in (known, unknown)))["auroc"]


def weights_of(detector: Detector) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in detector.state_dict().values()])


@pytest.mark.parametrize("changes", [{}, {"mi_weight": 0.0}, {"method": "energy", "learning_rate": 0.02}])
def test_learns_the_classes_and_to_tell_outliers(id_images, validation, pairs, changes):
    settings = replace(SETTINGS, **changes)
    detector = train_detector(id_images, settings, validation=validation, outliers=pairs)
    test = shapes(["horizontal", "vertical"], 100, seed=3)
    assert (logits_of(detector, test).argmax(dim=1) == torch.tensor(test.labels)).float().mean() > 0.95
    assert auroc(detector) > (95 if settings.method == "oe" else 85)
    assert not detector.training


@pytest.mark.parametrize("method", ["oe", "mixoe"])
def test_real_outliers_need_not_belong_to_the_images(id_images, validation, method):
    others = shapes(["diagonal"], 37, seed=2, labelled=False)
    settings = replace(SETTINGS, method=method)
    assert auroc(train_detector(id_images, settings, validation=validation, outliers=others)) > 90


def test_vos_needs_no_outliers(id_images, validation, monkeypatch, tmp_path):
    monkeypatch.setattr("sona_pipeline.training.methods.vos.KEPT", 20)
    train_detector(id_images, replace(SETTINGS, method="vos"), validation=validation, output=tmp_path)
    losses = [row["outliers"] for row in read_json_lines(tmp_path / "log.jsonl")]
    assert losses[0] == 0 and losses[-1] > 0


@pytest.mark.parametrize("score", SCORES)
def test_threshold_accepts_the_rate_of_the_validation_images(id_images, validation, score):
    settings = replace(SETTINGS, epochs=1, score=score, id_rate=0.8)
    detector = train_detector(id_images, settings, validation=validation)
    accepted = SCORES[score](logits_of(detector, validation), 1.0) <= detector.threshold
    assert (detector.score, accepted.float().mean().item()) == (score, pytest.approx(0.8, abs=0.021))


def test_same_seed_same_weights(id_images, validation, pairs):
    def weights(**changes) -> torch.Tensor:
        settings = replace(SETTINGS, epochs=1, **changes)
        return weights_of(train_detector(id_images, settings, validation=validation, outliers=pairs))

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights(seed=1))
    assert not torch.equal(weights(), weights(outlier_augmentation="none"))


def test_losses_of_a_batch_are_those_of_the_paper(id_images, outliers):
    """Every term of (8) from logits and features that are computed apart."""
    rounds = shapes(["horizontal", "vertical"], 160, seed=9)
    strengths = tuple(0.2 if k % 3 == 0 else 0.9 for k in range(160))
    sets = TrainingSets(id_images, None, OutlierPairs(id_images, outliers, rounds, strengths))
    settings = replace(SETTINGS, augmentation="none", outlier_weight=0.3, mi_weight=0.7)
    training = Training(sets, settings, accelerator())
    detector = training.detector.eval()  # batch norm by running means: the same alone and together
    batch = next(iter(training.loader))
    batch.pop("rejects")
    losses = training._losses(batch, 0.0)
    with torch.no_grad():
        known = detector(batch["image"] / 255), detector(batch["reconstruction"] / 255)
        used = batch["strength"] > 0.5
        ood, features = detector(batch["outlier"][used] / 255, with_features=True)
        id_features = detector.features(batch["image"][used] / 255)
    expected = sum(nn.functional.cross_entropy(logits, batch["label"]) for logits in known) / 2
    assert losses["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["outliers"].item() == pytest.approx(outlier_exposure(ood).item(), rel=1e-5)
    x, y = ((f - f.mean(dim=0)) / (f.var(dim=0, correction=0) + 1e-5).sqrt() for f in (id_features, features))
    bound = training.club.bound(x, y).clamp(min=0).item() / 128
    assert losses["mutual_information"].item() == pytest.approx(bound, rel=1e-3)
    total = losses["cross_entropy"] + 0.3 * losses["outliers"] + 0.7 * losses["mutual_information"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def test_mutual_information_goes_down_by_its_weight(id_images, validation, tmp_path):
    """Outliers that repeat their source's phase share information with it, which a weight of 0 leaves alone."""
    turned = ImageSet(id_images.keys, (), (), lambda i: id_images.image(i).transpose(4))
    last = {}
    for gamma in (0.001, 100.0):
        settings = replace(SETTINGS, mi_weight=gamma, outlier_weight=0.0, epochs=6)
        folder = tmp_path / str(gamma)
        train_detector(id_images, settings, validation=validation, outliers=beside(id_images, turned), output=folder)
        last[gamma] = [row["mutual_information"] for row in read_json_lines(folder / "log.jsonl")][-1]
    assert last[100.0] < 0.5 * last[0.001]


def test_only_outliers_of_enough_strength_are_used(id_images, outliers):
    strengths = tuple(0.2 if k % 2 else 0.9 for k in range(160))
    sets = TrainingSets(id_images, None, OutlierPairs(id_images, outliers, None, strengths))
    training = Training(sets, replace(SETTINGS, min_strength=0.5), accelerator())
    for batch in training.loader:
        batch.pop("rejects")
        step, logits, labels = training._forward(batch, 0.0)
        assert step.sources.tolist() == [i for i, strength in enumerate(batch["strength"].tolist()) if strength > 0.5]
        assert len(step.outlier_logits) == len(step.sources) > 0
        assert len(logits) == len(labels) == len(batch["image"])


def test_accumulated_parts_make_one_step_of_the_whole_batch(id_images, validation):
    """Without batch norm and augmentation, the gradient of a batch is the mean of those of its parts."""

    def weights(accumulation: int) -> torch.Tensor:
        settings = replace(
            SETTINGS, network="timm:convnext_atto", image_size=32, epochs=1, augmentation="none", keep="last",
            learning_rate=0.01, accumulation=accumulation, batch_size=32
        )  # fmt: skip
        return weights_of(train_detector(id_images.take(range(64)), settings, validation=validation))

    once, apart = weights(1), weights(4)
    assert torch.allclose(once, apart, atol=1e-4)
    assert not torch.equal(once, apart)


def test_best_epoch_is_kept(id_images, validation, tmp_path):
    settings = replace(SETTINGS, epochs=5, learning_rate=0.3)
    best = train_detector(id_images, settings, validation=validation, output=tmp_path / "best")
    last = train_detector(id_images, replace(settings, keep="last"), validation=validation, output=tmp_path / "last")
    rows = list(read_json_lines(tmp_path / "best" / "log.jsonl"))
    accuracies = [row["validation_accuracy"] for row in rows]
    truth = torch.tensor(validation.labels)

    def accuracy(detector: Detector) -> float:
        return 100 * (logits_of(detector, validation).argmax(dim=1) == truth).float().mean().item()

    assert accuracy(best) == pytest.approx(max(accuracies))
    assert accuracy(last) == pytest.approx(accuracies[-1])
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]


def test_stopped_training_goes_on_to_the_same_weights(id_images, validation, pairs, tmp_path, monkeypatch):
    for name, options in (("vos", {}), ("mi", {"outliers": pairs})):
        settings = replace(SETTINGS, epochs=3, method="vos" if name == "vos" else "oe")
        whole = train_detector(id_images, settings, validation=validation, output=tmp_path / f"{name}-whole", **options)
        for epoch in (1, 2):
            stop_after(epoch, monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                train_detector(id_images, settings, validation=validation, output=tmp_path / name, **options)
        monkeypatch.undo()
        again = train_detector(id_images, settings, validation=validation, output=tmp_path / name, **options)
        assert torch.equal(weights_of(whole), weights_of(again)) and whole.threshold == again.threshold
        logs = [(tmp_path / folder / "log.jsonl").read_text() for folder in (name, f"{name}-whole")]
        assert logs[0] == logs[1]


def test_finished_training_is_only_loaded(id_images, validation, tmp_path, monkeypatch):
    settings = replace(SETTINGS, epochs=1)
    first = train_detector(id_images, settings, validation=validation, output=tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(Training, "run", None)
    again = train_detector(id_images, settings, validation=validation, output=tmp_path)
    assert torch.equal(weights_of(first), weights_of(again)) and first.threshold == again.threshold
    changed = {path.name for path in tmp_path.iterdir() if files.get(path.name) != path.stat().st_mtime_ns}
    assert changed <= {".lock"} and not (tmp_path / "checkpoint.safetensors").exists()
    with pytest.raises(ValueError, match=r"epochs \(1 then, 2 now\)"):
        train_detector(id_images, replace(settings, epochs=2), validation=validation, output=tmp_path)
    with pytest.raises(ValueError, match="other settings: images"):
        train_detector(id_images.take(range(100)), settings, validation=validation, output=tmp_path)


def test_folder_with_a_detector_of_unknown_origin_is_refused(id_images, validation, tmp_path):
    save_detector(Detector(["horizontal", "vertical"], image_size=16), tmp_path)
    with pytest.raises(ValueError, match="holds a model that this training did not make: choose another folder"):
        train_detector(id_images, replace(SETTINGS, epochs=1), validation=validation, output=tmp_path)
    assert not (tmp_path / "training.json").exists()


def test_unreadable_images_are_recorded_and_passed_over(id_images, validation, outliers, tmp_path):
    pairs = beside(damaged(id_images, 3), damaged(outliers, 8))
    held_out = damaged(validation, 0, 99)
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        train_detector(
            pairs.images, replace(SETTINGS, epochs=1, batch_size=160), validation=held_out, outliers=pairs,
            output=folder, running=Running(workers=workers, cpu=True),
        )  # fmt: skip
        rows = {row["key"]: row["reason"] for row in read_json_lines(folder / "rejects.jsonl")}
        assert set(rows) == {"0-3", "0-8", "1-0", "1-99"}
        assert "2-8 cannot be read" in rows["0-8"]
    with pytest.raises(OSError, match="none of the 4 training images can be read"):
        train_detector(damaged(id_images.take(range(4)), 0, 1, 2, 3), SETTINGS, validation=validation)
    with pytest.raises(OSError, match="no validation image can be read"):
        train_detector(id_images, SETTINGS, validation=damaged(validation.take(range(2)), 0, 1))


def test_one_image_a_class_is_enough(validation):
    two = shapes(["horizontal", "vertical"], 2, seed=0)
    assert train_detector(two, replace(SETTINGS, epochs=1), validation=validation).classes == ["horizontal", "vertical"]


def test_one_bad_outlier_costs_no_id_image(id_images, validation, tmp_path):
    others = damaged(shapes(["diagonal"], 7, seed=2, labelled=False), 3)
    train_detector(id_images, replace(SETTINGS, epochs=1), validation=validation, outliers=others, output=tmp_path)
    rows = list(read_json_lines(tmp_path / "rejects.jsonl"))
    assert [row["key"] for row in rows] == ["2-3"]
    with pytest.raises(ValueError, match="all of 100 outliers or fewer"):
        train_detector(id_images, SETTINGS, validation=validation, outliers=damaged(others.take([0]), 0))


def test_outliers_of_the_same_names_in_other_files_are_other_outliers(id_images, validation, pairs, tmp_path):
    """File names and strengths follow from seed and keys, so that sets of two guidance scales have the same."""
    settings, options = replace(SETTINGS, epochs=1), {"validation": validation, "output": tmp_path}
    one, other = (replace(pairs, content=content) for content in ("a", "b"))
    train_detector(id_images, settings, **options, outliers=one)
    with pytest.raises(ValueError, match=r"made with other settings: outlier_content \('a' then, 'b' now\)"):
        train_detector(id_images, settings, **options, outliers=other)
    record = json.loads((tmp_path / "training.json").read_text())
    del record["outlier_content"]
    (tmp_path / "training.json").write_text(json.dumps(record))
    train_detector(id_images, settings, **options, outliers=one)


def test_failed_first_try_does_not_hold_up_the_next(id_images, validation, tmp_path):
    with pytest.raises(FloatingPointError):
        train_detector(id_images, replace(SETTINGS, learning_rate=1e30), validation=validation, output=tmp_path)
    train_detector(id_images, replace(SETTINGS, epochs=1), validation=validation, output=tmp_path)
    assert '"learning_rate": 0.1' in (tmp_path / "training.json").read_text()


def test_detector_without_threshold_is_ready_to_score(id_images):
    detector = train_detector(id_images, replace(SETTINGS, epochs=1, id_rate=None))
    assert not detector.training and detector.threshold is None


def test_diverging_training_is_stopped(id_images, validation, tmp_path):
    with pytest.raises(FloatingPointError, match="in epoch 1: lower the learning rate"):
        train_detector(id_images, replace(SETTINGS, learning_rate=1e30), validation=validation, output=tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_validation_classes_are_known_by_their_names_in_any_order_and_normal_form(id_images, validation):
    trained = replace(id_images, classes=("Cafe\u0301", "Cafz"))
    other = replace(validation, classes=("Caf\u00e9", "Cafz"))
    accuracy = [
        train_detector(trained, SETTINGS, validation=one).threshold
        for one in (replace(validation, classes=trained.classes), other, other.with_classes(["Cafz", "Caf\u00e9"]))
    ]
    assert accuracy[0] == accuracy[1] == accuracy[2]


def test_sets_that_do_not_go_together_are_refused(id_images, validation, pairs):
    three = id_images.take(range(3))

    def refused(message: str, images=id_images, settings=SETTINGS, **options):
        with pytest.raises(ValueError, match=message):
            train_detector(images, settings, **{"validation": validation} | options)

    refused("160 ID images are not the 3 that the outliers were made of", outliers=beside(three, three))
    refused("no outlier has a strength of 0.4", outliers=beside(id_images, id_images, strength=0.1))
    refused("the set of outliers is empty", outliers=id_images.take([]))
    refused("validation classes", validation=shapes(["horizontal", "diagonal"], 4, 0))
    refused("only \\['horizontal'\\]", images=shapes(["horizontal"], 4, 0))
    refused("\\['vertical'\\] have no training images", images=id_images.of_classes(["horizontal"]))
    refused("training images have no classes", images=shapes(["horizontal"], 4, 0, labelled=False))
    refused("label of the training images is 2", images=replace(id_images, labels=(0, 1, 2, *id_images.labels[3:])))
    refused("threshold at an ID rate of 0.95 needs validation images", validation=None)
    refused("between an image and its own outlier", settings=replace(SETTINGS, mi_weight=1.0), outliers=three)
    refused("between an image and its own outlier", settings=replace(SETTINGS, mi_weight=1.0))
    refused("no outliers for the method 'oe': give some", settings=replace(SETTINGS, outlier_weight=0.5))
    check_training(TrainingSets(id_images, validation), replace(SETTINGS, outlier_weight=0.5, method="vos"))
    check_training(TrainingSets(id_images, validation), replace(SETTINGS, outlier_weight=0.0, mi_weight=0.0))


def test_mutual_information_is_added_where_there_are_pairs(id_images, pairs):
    assert mi_weight(SETTINGS, pairs) == 1.0
    assert mi_weight(SETTINGS, None) == mi_weight(SETTINGS, id_images) == 0.0
    assert mi_weight(replace(SETTINGS, method="mixoe"), pairs) == 0.0
    assert mi_weight(replace(SETTINGS, mi_weight=0.2), pairs) == 0.2


def test_fine_tuning_starts_from_the_weights_of_a_detector(id_images, validation, pairs, tmp_path):
    base = train_detector(id_images, SETTINGS, validation=validation, output=tmp_path / "base")
    tuned = replace(SETTINGS, method="energy", m_in=-4.0, m_out=-1.0, outlier_weight=0.1)
    start = new_detector(id_images.classes, replace(tuned, score="msp"), base)
    assert torch.equal(weights_of(start), weights_of(base)) and start.training
    assert (start.threshold, start.id_quantiles, start.score) == (None, None, "msp")
    settings = replace(tuned, epochs=1, learning_rate=1e-3)
    options = {"classifier": base, "validation": validation, "outliers": pairs, "output": tmp_path / "tuned"}
    detector = train_detector(id_images, settings, **options)
    heads = [one.network.head.weight for one in (detector, base)]
    assert 0 < (heads[0] - heads[1]).abs().max() < 0.05

    def gap(one: Detector) -> float:
        known, unknown = (SCORES["energy"](logits_of(one, images), 1.0) for images in (id_images, pairs.outliers))
        return (unknown.mean() - known.mean()).item()

    assert gap(detector) > gap(base)
    assert train_detector(id_images, settings, **options).threshold == detector.threshold  # only loaded
    with pytest.raises(ValueError, match="other settings: initial_weights"):
        train_detector(id_images, settings, **options | {"classifier": detector})


def test_margins_that_are_none_are_refused():
    energy = replace(SETTINGS, method="energy")
    for changes, message in (
        ({"m_in": -23.0}, "`m_in` is -23.0 and `m_out` None: give both margins, or neither"),
        ({"m_in": -5.0, "m_out": -23.0}, "`m_in` is -5.0, but has to be below `m_out`, which is -23.0"),
        ({"m_in": -23.0, "m_out": float("nan")}, "`m_out` is nan"),
        ({"m_in": -23.0, "m_out": -5.0, "method": "oe"}, "margins of the method 'energy', but `method` is 'oe'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_settings(replace(energy, **changes))
    check_settings(replace(energy, m_in=-23.0, m_out=-5.0))


def test_records_of_0_1_0_are_read_without_the_settings_that_it_lacks():
    record = {name: 1 for name in ("epochs", "seed", "mixed_precision", "workers", "classes")}
    assert settings_in(record) == {name: 1 for name in ("epochs", "seed", "mixed_precision", "workers")}


def test_edges_of_a_photograph_are_trained_on(validation):
    """A picture of 2 : 1 whose left quarter alone is bright, seen by the crops that training draws."""
    wide = Image.new("L", (64, 32))
    wide.paste(255, (0, 0, 16, 32))
    images = ImageSet(("a", "b"), (0, 1), ("one", "two"), lambda index: wide)
    settings = replace(SETTINGS, augmentation="resized_crop", crop_pct=0.875, batch_size=2)
    training = Training(TrainingSets(images), settings, accelerator())
    seen = torch.cat([batch["image"] for _ in range(40) for batch in training.loader])
    assert ((seen > 128).flatten(1).any(dim=1)).float().mean() > 0.1


BAD = {
    "method": ("dream", "`method` is 'dream', but has to be one of"),
    "optimizer": ("lion", "`optimizer` is 'lion'"),
    "schedule": ("step", "`schedule` is 'step'"),
    "augmentation": ("mixup", "`augmentation` is 'mixup'"),
    "outlier_augmentation": ("weak", "`outlier_augmentation` is 'weak', but has to be one of"),
    "score": ("entropy", "`score` is 'entropy'"),
    "keep": ("first", "`keep` is 'first'"),
    "epochs": (0, "`epochs` is 0, but has to be 1 or more"),
    "batch_size": (1, "`batch_size` is 1"),
    "accumulation": (3, "cannot be computed in 3 equal parts"),
    "learning_rate": (float("nan"), "`learning_rate` is nan"),
    "weight_decay": (float("inf"), "`weight_decay` is inf"),
    "mi_weight": (-1.0, "`mi_weight` is -1.0"),
    "min_strength": (1.5, "`min_strength` is 1.5"),
    "crop_pct": (0.0, "`crop_pct` is 0.0"),
    "id_rate": (1.0, "`id_rate` is 1.0"),
    "image_size": (4, "`image_size` is 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_out_of_their_range_are_refused(name):
    value, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        check_settings(replace(SETTINGS, **{name: value}))


def test_recipe_of_the_paper_is_the_default():
    paper = TrainingSettings()
    assert RECIPES["imagenet200"] == paper
    assert (paper.network, paper.image_size, paper.epochs, paper.batch_size) == ("resnet18", 224, 100, 256)
    assert (paper.optimizer, paper.learning_rate, paper.schedule) == ("sgd", 0.1, "cosine")
    fine = RECIPES["fine-grained"]
    changed = {f.name for f in fields(fine) if getattr(fine, f.name) != getattr(paper, f.name)}
    assert changed == {"image_size", "batch_size"} and (fine.image_size, fine.batch_size) == (448, 32)
    for settings in RECIPES.values():
        check_settings(settings)


def test_fine_tuning_starts_from_the_weights_and_normalization_of_the_network(id_images, validation, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=7)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1]).save_pretrained(tmp_path / "model")
    settings = replace(
        SETTINGS, network=f"transformers:{tmp_path / 'model'}", pretrained=True, optimizer="adamw",
        schedule="cosine", learning_rate=1e-12, weight_decay=0.0, epochs=1, keep="last"
    )  # fmt: skip
    detector = train_detector(id_images, settings, validation=validation)
    start = ResNetForImageClassification.from_pretrained(tmp_path / "model").resnet.state_dict()
    inside = dict(detector.network.body.model.resnet.named_parameters())
    assert all(torch.allclose(inside[name], start[name], atol=1e-6) for name in inside)
    assert detector.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert detector.std.flatten().tolist() == pytest.approx([0.2, 0.2, 0.1])


def test_fine_tuning_keeps_position_embeddings_and_refuses_another_image_size(id_images, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTForImageClassification(ViTConfig(**small, image_size=16, patch_size=8))
    for part in (model, ViTImageProcessor()):
        part.save_pretrained(tmp_path / "model")
    settings = replace(SETTINGS, network=f"transformers:{tmp_path / 'model'}", pretrained=True)
    detector = new_detector(id_images.classes, settings)
    positions = detector.network.body.model.vit.embeddings.position_embeddings
    assert torch.equal(positions, model.vit.embeddings.position_embeddings)
    save_detector(detector, tmp_path / "detector")
    assert torch.equal(weights_of(load_detector(tmp_path / "detector", "cpu")), weights_of(detector))
    with pytest.raises(ValueError, match="does not take images of 32 pixels: choose another image size or network"):
        new_detector(id_images.classes, replace(settings, image_size=32))


def test_tracker_gets_the_losses(id_images, validation, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_detector(
        id_images, replace(SETTINGS, epochs=2), validation=validation, output=tmp_path,
        running=Running(tracker="tensorboard", cpu=True),
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path / "sona")).Reload()
    logged = [event.value for event in events.Scalars("cross_entropy")]
    assert logged == pytest.approx([row["cross_entropy"] for row in read_json_lines(tmp_path / "log.jsonl")], rel=1e-5)


def test_class_folder_without_images_is_refused(tmp_path, validation):
    for name in ("horizontal", "vertical"):
        (tmp_path / name).mkdir()
        validation.image(validation.classes.index(name)).save(tmp_path / name / "one.png")
    (tmp_path / "diagonal").mkdir()
    with pytest.raises(ValueError, match=r"\['diagonal'\] have no training images"):
        train_detector(open_images(tmp_path), SETTINGS, validation=validation)


def test_recipe_for_photographs_learns_from_random_parts_of_the_images(id_images, validation):
    changes = {"augmentation": "resized_crop", "crop_pct": 0.8, "schedule": "cosine", "epochs": 6}
    detector = train_detector(id_images, replace(SETTINGS, **changes), validation=validation)
    assert (logits_of(detector, validation).argmax(dim=1) == torch.tensor(validation.labels)).float().mean() > 0.8
