"""Models of transformers that cannot be loaded, wherever one is named."""

import shutil

import pytest
import torch
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

from sona_pipeline.detection.networks import build
from sona_pipeline.generation.checks import load_classifier
from sona_pipeline.generation.ood_labels import text_encoder

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
LOADERS = {
    "image classifier": lambda name: load_classifier(name, {"cat": ("cat",)}),
    "text encoder": text_encoder,
    "network": lambda name: build(f"transformers:{name}", 2, 32, pretrained=True),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    BertModel(BertConfig(vocab_size=20, **SMALL)).save_pretrained(folder / "bert")
    network = ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, id2label={0: "cat", 1: "dog"}, **SMALL))
    network.save_pretrained(folder / "damaged")
    shutil.copytree(folder / "damaged", folder / "pickle")
    (folder / "pickle" / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pickle" / "pytorch_model.bin")
    (folder / "damaged" / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_what_cannot_be_loaded_is_named_in_a_sentence(models, load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"weights of .*damaged are damaged: copy or download them again \(.*\)$"):
        load(str(models / "damaged"))
    for name in ("pickle", "empty"):
        with pytest.raises(ValueError, match=rf"^the folder .*{name} is no [a-z ]+ of transformers with all its files"):
            load(str(models / name))
    for name in ("nowhere", "nobody/nothing", "two words"):
        with pytest.raises(FileNotFoundError, match=f"^{name} is no folder here, and no .*: name another, or connect"):
            load(name)


def test_a_model_of_another_kind_is_refused(models):
    for kind in ("image classifier", "network"):
        with pytest.raises(ValueError, match=r"bert is no image classifier of transformers with all its files"):
            LOADERS[kind](str(models / "bert"))


def test_a_folder_may_start_at_home(models, monkeypatch):
    monkeypatch.setenv("HOME", str(models))
    with pytest.raises(ValueError, match=f"weights of {models}/damaged are damaged"):
        LOADERS["image classifier"]("~/damaged")
