from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sona_pipeline import sample
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.generation.ways import dream

SETTINGS = GenerationSettings(("bag",), num_inference_steps=4, way="dream")


@pytest.fixture(scope="module")
def images():
    whole = sample.id_images("train")
    return whole.take(range(0, len(whole), 5))


def maker_of(pipe, images, **changes):
    return OutlierMaker(pipe, plan_outliers(images, replace(SETTINGS, **changes)))


def test_the_words_of_a_class_are_found_in_its_prompt(pipe, images):
    for template in ("a photo of a {}", "{} on a table", "a very dark photo of a {} at night"):
        way = maker_of(pipe, images, prompt=template).way
        for name in ("t-shirt", "ankle boot", "shirt"):
            ids = pipe.tokenizer(template.format(name)).input_ids
            assert pipe.tokenizer.decode(ids[way._word(name)]).strip().replace(" ", "") == name.replace(" ", "")


def embeds_of(maker, texts):
    return maker.prompts(texts)["prompt_embeds"]


def test_vectors_point_away_from_the_class_and_are_as_long_as_its_word(pipe, images, monkeypatch):
    monkeypatch.setattr(dream, "EPOCHS", 5)
    maker = maker_of(pipe, images)
    prepared = maker.way.prepare(maker)
    assert list(prepared) == [str(label) for label in range(len(images.classes))]
    embeds = embeds_of(maker, [f"a photo of a {name}" for name in images.classes])
    places = [maker.way._word(name) for name in images.classes]
    words = torch.stack([one[place].mean(dim=0) for one, place in zip(embeds, places)])
    for label, vectors in enumerate(prepared.values()):
        assert vectors.norm(dim=1).tolist() == pytest.approx([float(words[label].norm())] * len(vectors), rel=1e-4)
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


def test_a_vector_takes_the_place_of_the_word_and_nothing_else(pipe, images, monkeypatch):
    maker = maker_of(pipe, images)
    label = images.labels[0]
    marks = {str(k): torch.full((3, 64), float(k)) for k in range(len(images.classes))}
    width = embeds_of(maker, ["x"]).shape[2]
    marks = {name: mark[:, :1].expand(3, width).clone() + 100 for name, mark in marks.items()}
    maker.way.begin(maker, marks)
    seen = []
    monkeypatch.setattr(dream, "drawn", lambda maker, wanted, generators: seen.append(wanted["prompt_embeds"]))
    work = maker.encode(maker.read(maker.plan.batch(maker.plan.batches(1)[0].indices)))
    label = images.labels[work.items[0].index]
    maker.way(maker, work)
    prompt = f"a photo of a {images.classes[label]}"
    plain, place = embeds_of(maker, [prompt])[0], maker.way.places[label]
    assert (seen[0][0][place] == 100 + label).all()
    others = torch.ones(len(plain), dtype=torch.bool)
    others[place] = False
    assert torch.equal(seen[0][0][others], plain[others])
    assert torch.equal(embeds_of(maker, [prompt])[0], plain)  # the cache is as it was


def test_a_class_that_cannot_be_read_is_told(pipe, images):
    few = images.take([k for k in range(len(images)) if images.labels[k] != 2][:20])
    maker = maker_of(pipe, few)
    missing = few.classes[min(set(range(len(few.classes))) - set(few.labels))]
    with pytest.raises(ValueError, match=f"needs images of every class, and {missing!r} has none"):
        maker.way.prepare(maker)
