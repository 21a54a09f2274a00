import json
import os
import subprocess
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from loopback_hub import LoopbackHub
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from warm_python import fresh_python

from sona_pipeline.detection.classifiers import as_detector, load_classifier
from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.detection.preprocessing import of_transformers
from sona_pipeline.detection.settings import ClassifierSettings

SIZE, CLASSES = 24, ["cat", "dog", "bird"]
SIGHT = {"image_size": SIZE, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
PIXELS = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
NORMAL = (PIXELS - torch.tensor(SIGHT["mean"]).view(1, 3, 1, 1)) / torch.tensor(SIGHT["std"]).view(1, 3, 1, 1)
Both = namedtuple("Both", ["scores", "maps"])


class Net(nn.Module):
    """A small classifier; what it returns is up to `shape`."""

    def __init__(
        self, shape=lambda logits, features: logits, channels: int = 3, classes: int = 3, head: nn.Module | None = None
    ):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8)
        self.fc, self.shape = head or nn.Linear(8, classes), shape

    def forward(self, pixels: torch.Tensor):
        features = self.norm(self.conv(pixels)).relu().mean(dim=(2, 3))
        return self.shape(self.fc(features), features)


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 10 * nn.functional.normalize(features) @ nn.functional.normalize(self.weight).T


def logits_in(given) -> torch.Tensor:
    for read in (lambda: given["logits"], lambda: given.logits, lambda: given[0]):
        try:
            return read() if not isinstance(given, torch.Tensor) else given
        except (KeyError, TypeError, AttributeError, IndexError):
            continue
    raise AssertionError(given)


SHAPES = {
    "tensor": lambda logits, features: logits,
    "dictionary": lambda logits, features: {"features": features, "logits": logits},
    "other dictionary": lambda logits, features: {0: logits, "embedding": features},
    "tuple": lambda logits, features: (logits, features),
    "named tuple": lambda logits, features: Both(logits, features),
    "object": lambda logits, features: SimpleNamespace(logits=logits, loss=None),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_module_of_any_output_gives_its_own_logits(shape):
    module = Net(SHAPES[shape]).train()
    module.norm.eval()
    detector = as_detector(module, CLASSES, **SIGHT)
    assert module.training and not module.norm.training  # left as it was
    with torch.no_grad():
        expected = logits_in(module.eval()(NORMAL))
        logits, features = detector(PIXELS, with_features=True)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(features @ module.fc.weight.T + module.fc.bias, expected)
    assert detector.network.head.weight.data_ptr() != module.fc.weight.data_ptr()


def test_features_of_its_own_may_come_from_a_linear_layer_where_the_head_is_named():
    class Projected(Net):
        def __init__(self):
            super().__init__()
            self.projection = nn.Linear(8, 4)

        def forward(self, pixels):
            features = self.norm(self.conv(pixels)).relu().mean(dim=(2, 3))
            return self.fc(features), self.projection(features)

    with pytest.raises(ValueError, match=r"outputs of several linear layers \(fc, projection\): say by `head`"):
        as_detector(Projected(), CLASSES, **SIGHT)
    module = Projected().eval()
    with torch.no_grad():
        torch.testing.assert_close(as_detector(module, CLASSES, **SIGHT, head="fc")(PIXELS), module(NORMAL)[0])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Net(head=Cosine()), "does not give the output of a torch.nn.Linear as its logits"),
        (Net(lambda logits, features: logits.sigmoid()), "a cosine, multi-label or hierarchical head"),
        (Net(lambda logits, features: logits.mul_(3)), "not those of its last linear layer"),
        (Net(head=parametrizations.weight_norm(nn.Linear(8, 3))), "the weights of fc in Net are parametrized"),
        (Net(classes=5), "gives 5 logits, but there are 3 classes"),
        (Net(channels=1), "Net does not take images of 24 pixels"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "does not give the output"),
    ],
)
def test_modules_without_a_linear_head_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        as_detector(module, CLASSES, **SIGHT)


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="does not give the output of head as its logits"):
        as_detector(Net(), CLASSES, **SIGHT, head="head")


def test_grey_networks_see_what_pillow_makes_grey():
    module = Net(channels=1).eval()
    detector = as_detector(module, CLASSES, image_size=SIZE, mean=[0.4], std=[0.2], channel_order="L")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    grey = torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32) / 255).view(1, 1, SIZE, SIZE)
    with torch.no_grad():
        expected = module((grey - 0.4) / 0.2)
        torch.testing.assert_close(detector(detector.pixels([image])), expected, atol=0.02, rtol=0)  # Pillow rounds
    shades = image.convert("L")
    with torch.no_grad():
        torch.testing.assert_close(detector(detector.pixels([shades])), expected, atol=1e-4, rtol=0)


def test_a_fourth_channel_is_that_of_an_opaque_image():
    module = Net(channels=4).eval()
    detector = as_detector(module, CLASSES, **SIGHT, channel_order="RGBA")
    with torch.no_grad():
        expected = module(torch.cat([NORMAL, torch.ones(4, 1, SIZE, SIZE)], dim=1))
        torch.testing.assert_close(detector(PIXELS), expected)


def test_saved_and_loaded_with_the_module_and_not_without(tmp_path):
    detector = as_detector(Net(SHAPES["tuple"]), CLASSES, **SIGHT).with_settings(threshold=-1.0)
    save_detector(detector, tmp_path)
    with pytest.raises(ValueError, match=r"its network is a module of yours, .*Net: make one, and give it as `module`"):
        load_detector(tmp_path)
    with pytest.raises(ValueError, match="`module` has no linear layer 'fc' with 3 outputs"):
        load_detector(tmp_path, module=nn.Sequential(nn.Linear(8, 3)))
    loaded = load_detector(tmp_path, "cpu", Net(SHAPES["tuple"]))
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS), detector(PIXELS)) and loaded.threshold == -1.0
    again = Detector.from_pretrained(str(tmp_path), module=Net(SHAPES["tuple"])).eval()
    with torch.no_grad():
        assert torch.equal(again(PIXELS), detector(PIXELS))


def vit(folder: Path, **changes) -> ViTForImageClassification:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**small, image_size=SIZE, patch_size=8, id2label=dict(enumerate(CLASSES)), **changes)
    torch.manual_seed(0)
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_classifier_of_transformers_is_kept_with_its_names_and_its_processor(tmp_path):
    model = vit(tmp_path)
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2] * 3)
    processor.save_pretrained(tmp_path)
    detector = load_classifier(ClassifierSettings(str(tmp_path)))
    assert detector.classes == CLASSES and detector.threshold is None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    with torch.no_grad():
        expected = model(**processor(images=image, return_tensors="pt")).logits
        torch.testing.assert_close(detector(detector.pixels([image])), expected, atol=1e-4, rtol=1e-4)
    save_detector(detector, tmp_path / "kept")
    with torch.no_grad():
        assert torch.equal(load_detector(tmp_path / "kept", "cpu")(PIXELS), detector(PIXELS))


def test_both_heads_of_a_distilled_transformer_are_kept(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = DeiTConfig(**small, image_size=SIZE, patch_size=8, id2label=dict(enumerate(CLASSES)))
    model = DeiTForImageClassificationWithTeacher(config).eval()
    model.save_pretrained(tmp_path)
    asked = ClassifierSettings(
        str(tmp_path), classifier_size=SIZE, classifier_mean="0.4,0.5,0.6", classifier_std="0.2,0.25,0.3"
    )
    detector = load_classifier(asked)
    with torch.no_grad():
        torch.testing.assert_close(detector(PIXELS), model(NORMAL).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("share", "side"), [(1.0, 32), (0.875, 28), (0.9, 63)])
def test_size_and_crop_are_found_by_what_a_processor_does(tmp_path, share, side):
    if share == 1:
        settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}}
    else:
        settings = {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": side},
            "crop_pct": share,
        }
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": True, "do_rescale": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = of_transformers(str(tmp_path))
    assert (found.image_size, found.crop_pct) == (side, pytest.approx(share, abs=0.006))
    assert round(side / found.crop_pct) == pytest.approx(side / share, abs=0.6)


def test_a_classifier_of_timm_is_kept_by_weights_and_by_folder(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nbird\n")
    place = f"timm:resnet10t={tmp_path / 'weights.safetensors'}"
    with pytest.raises(ValueError, match="have no names: give a file with a name a line"):
        load_classifier(ClassifierSettings(place))
    detector = load_classifier(ClassifierSettings(place, names))
    config = timm.get_pretrained_cfg("resnet10t")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std))
    assert (detector.image_size, detector.crop_pct) == (config.input_size[1], config.crop_pct)
    with torch.no_grad():
        expected = model((PIXELS - mean) / std)
        torch.testing.assert_close(detector(PIXELS), expected, atol=1e-4, rtol=1e-4)
    timm.models.save_for_hf(model, tmp_path / "hub", model_config={"label_names": CLASSES}, safe_serialization=True)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(ClassifierSettings(str(tmp_path / "hub")))(PIXELS), detector(PIXELS))


def test_grey_weights_of_timm_keep_their_channel(tmp_path):
    model = timm.create_model(
        "resnet10t", num_classes=3, in_chans=1, pretrained_cfg_overlay={"input_size": (1, 32, 32)}
    )
    cfg = model.pretrained_cfg | {"mean": (0.5,), "std": (0.25,)}
    model.pretrained_cfg = cfg
    timm.models.save_for_hf(model.eval(), tmp_path, model_config={"label_names": CLASSES}, safe_serialization=True)
    detector = load_classifier(ClassifierSettings(str(tmp_path)))
    grey = PIXELS[:, :1].expand(-1, 3, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(detector(grey), model((PIXELS[:, :1] - 0.5) / 0.25), atol=1e-4, rtol=1e-4)
    save_detector(detector, tmp_path / "kept")
    with torch.no_grad():
        assert torch.equal(load_detector(tmp_path / "kept", "cpu")(grey), detector(grey))


def test_what_is_no_classifier_is_refused_in_a_sentence(tmp_path):
    def refused(message: str, error: type[Exception] = ValueError, **asked):
        with pytest.raises(error, match=message):
            load_classifier(ClassifierSettings(**asked))

    refused("timm has no model named 'resnet1'", classifier="timm:resnet1=x.safetensors")
    refused("names no weights: write timm:resnet18=FILE", classifier="timm:resnet18")
    refused("do not exist", FileNotFoundError, classifier=f"timm:resnet18={tmp_path / 'x.safetensors'}")
    torch.save({"a": torch.zeros(1)}, tmp_path / "net.pth")
    refused(r"a pickle is not loaded: convert it by safetensors", classifier=f"timm:resnet18={tmp_path / 'net.pth'}")
    refused("holds no detector or other classifier", FileNotFoundError, classifier=str(tmp_path))
    (tmp_path / "config.json").write_text('{"other": 1}')
    refused("is no classifier that is known", classifier=str(tmp_path))
    vit(tmp_path / "vit")
    refused("not known how the images of .*vit were prepared", classifier=str(tmp_path / "vit"))
    refused("`classifier_mean` is 'grey'", classifier=str(tmp_path / "vit"), classifier_mean="grey")
    vit(tmp_path / "many", problem_type="multi_label_classification")
    refused("multi-label head", classifier=str(tmp_path / "many"))
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=7)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "nameless")
    refused("have no names", classifier=str(tmp_path / "nameless"))
    names = tmp_path / "two.txt"
    names.write_text("a\nb\n")
    sight = {"classifier_size": 24, "classifier_mean": "0.5", "classifier_std": "0.5"}
    refused(
        "has 7 logits, but 2 names of classes", classifier=str(tmp_path / "nameless"), classifier_labels=names, **sight
    )


ASK = """
from sona_pipeline import ClassifierSettings, load_classifier
for place in ("user/vit", "user/pickled"):
    try:
        print(load_classifier(ClassifierSettings(place)).classes)
    except (ValueError, OSError) as error:
        print(error)
"""


def test_from_the_hub_and_never_a_pickle(tmp_path):
    model = vit(tmp_path / "vit")
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "vit")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text('{"architecture": "resnet10t", "pretrained_cfg": {}}')
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with LoopbackHub() as hub:
        for name in ("vit", "pickled"):
            hub.add(f"user/{name}", tmp_path / name)
        environment = os.environ | hub.environment(tmp_path / "home")
        said = subprocess.run(
            [fresh_python(), "-c", ASK], env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert not any("pytorch_model.bin" in request for request in hub.requests)
    assert said[-2] == str(CLASSES)
    assert "no weights in safetensors, and a pickle is not loaded" in said[-1]
