from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sona_pipeline import sample
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.generation.ways import dream
from sona_pipeline.generation.words import prompts_with

SETTINGS = GenerationSettings(("bag",), num_inference_steps=4, way="dream")


@pytest.fixture(scope="module")
def images():
    whole = sample.id_images("train")
    return whole.take(range(0, len(whole), 5))


def maker_of(pipe, images, **changes):
    return OutlierMaker(pipe, plan_outliers(images, replace(SETTINGS, **changes)))


def test_vectors_point_away_from_the_class_and_are_as_long_as_its_word(pipe, images, monkeypatch):
    monkeypatch.setattr(dream, "EPOCHS", 5)
    maker = maker_of(pipe, images)
    prepared = maker.way.prepare(maker)
    assert list(prepared) == [str(label) for label in range(len(images.classes))]
    table = pipe.text_encoder.get_input_embeddings().weight
    words = torch.stack([table[pipe.tokenizer(name).input_ids[1:-1]].mean(dim=0) for name in images.classes])
    for label, vectors in enumerate(prepared.values()):
        assert vectors.norm(dim=1).allclose(words[label].norm(), rtol=1e-4)
        cosines = F.normalize(vectors, dim=1) @ F.normalize(words, dim=1).T
        assert cosines[:, label].max() < 0.999
    again = maker_of(pipe, images)
    found = again.way.prepare(again)
    assert all(torch.equal(found[name], vectors) for name, vectors in prepared.items())


def test_the_encoder_learns_where_the_words_are(pipe, images):
    maker = maker_of(pipe, images)
    pixels, labels = maker.way._images(maker)
    torch.manual_seed(0)
    anchors = torch.randn(len(images.classes), 16)
    encoder = dream._trained(dream.Encoder(anchors, 32), pixels, labels)
    features = dream._features(encoder, pixels)
    said = (features @ F.normalize(anchors, dim=1).T).argmax(dim=1)
    assert (said == labels).float().mean() > 0.6
    assert features.norm(dim=1).allclose(torch.ones(len(features)))


def test_the_text_encoder_reads_a_vector_of_its_class_in_place_of_the_word(pipe, images, monkeypatch):
    maker = maker_of(pipe, images, prompt="a dark photo of a {}")
    vectors = {str(k): torch.full((3, 64), 0.01 * k) for k in range(len(images.classes))}
    maker.way.begin(maker, vectors)
    seen = []
    monkeypatch.setattr(dream, "drawn", lambda maker, wanted, generators: seen.append(wanted["prompt_embeds"]))
    work = maker.encode(maker.read(maker.plan.batch(maker.plan.batches(1)[0].indices)))
    maker.way(maker, work)
    own = [vectors[str(images.labels[item.index])][0] for item in work.items]
    torch.testing.assert_close(seen[0], prompts_with(pipe, "a dark photo of a {}", torch.stack(own)))


def test_a_class_that_cannot_be_read_is_told(pipe, images):
    few = images.take([k for k in range(len(images)) if images.labels[k] != 2][:20])
    maker = maker_of(pipe, few)
    missing = few.classes[min(set(range(len(few.classes))) - set(few.labels))]
    with pytest.raises(ValueError, match=f"needs images of every class, and {missing!r} has none"):
        maker.way.prepare(maker)


@pytest.mark.parametrize(("images", "width", "neighbours", "size"), [(1000, 768, 300, 200), (300, 64, 90, 60)])
def test_the_edge_is_the_same_share_of_a_class_and_as_wide_by_any_words(images, width, neighbours, size):
    edge = dream.edge_of(images, width)
    assert (edge.neighbours, edge.size, edge.drawn, edge.kept) == (neighbours, size, 1500, 2)
    assert edge.spread * width**0.5 == pytest.approx(0.03 * 768**0.5)
    assert (dream.edge_of(1, width).neighbours, dream.edge_of(1, width).size) == (1, 1)
