import ast
import json

import pytest
import torch
import torchvision
import yaml
from openood_places import PLACES
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize, to_tensor

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.images import open_images
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.shards import Sample
from sona_pipeline.detection.detector import Detector
from sona_pipeline.evaluation.openood import (
    BENCHMARKS,
    oe_config,
    open_group,
    open_part,
    resnet18_state_dict,
    save_resnet18,
)
from sona_pipeline.evaluation.settings import TestImages
from sona_pipeline.evaluation.sources import open_test_images
from sona_pipeline.generation.plan import folder_name

# Benchmarks
"""List file and image folder of every set, as OpenOOD's evaluation API has them, written out."""

ID = ("train", "validation", "test", "covariate")


def shade(place: int, row: int) -> int:
    return 4 * place + row


def lines(kind: str) -> list[str]:
    """Numbers out of order in training, one missing in tests, folders with other names under covariate shift."""
    if kind == "train":
        return ["set/train/wolf/1.png 7", "set/train/ant/1.png 0", "set/train/wolf/2.png 7", "set/train/moth/1.png 3"]
    if kind in ID:
        return ["set/test/moth/1.png 3", "set/test/wolf/1.png 7", "set/test/wolf/2.png 7"]
    if kind.startswith("covariate"):
        return ["shifted/7/1.png 7", "shifted/0/1.png 0"]
    return ["ood/x/1.png -1", "ood/y/2.png 5"] if "tin" in kind else ["ood/x/1.png -1"]


def fake_data(root, name: str):
    """A `data` folder for one benchmark, where every set has images of shades of its own."""
    for place, (kind, (list_name, folder)) in enumerate(PLACES[name].items()):
        rows = [line.replace("/", f"-{place}/", 1) for line in lines(kind)]
        path = root / "benchmark_imglist" / f"{list_name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
        for row, line in enumerate(rows):
            file = root / folder / line.split(" ")[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), shade(place, row)).save(file)
    return root


def opened(name: str, root) -> dict[str, ImageSet]:
    """All sets of a benchmark, with the names that `PLACES` has."""
    found = {part: open_part(name, root, part) for part in BENCHMARKS[name].parts}
    for group in ("near_ood", "far_ood", "covariate"):
        found |= {f"{group} {kind}": images for kind, images in open_group(name, root, group).items()}
    return found


@pytest.mark.parametrize("name", PLACES)
def test_every_set_comes_from_its_own_list_and_folder(name, tmp_path):
    sets = opened(name, fake_data(tmp_path, name))
    assert list(sets) == list(PLACES[name])
    for place, (kind, images) in enumerate(sets.items()):
        shades = [images.image(row).getpixel((0, 0))[0] for row in range(len(images))]
        assert shades == [shade(place, row) for row in range(len(lines(kind)))], kind


@pytest.mark.parametrize("name", PLACES)
def test_id_sets_share_the_classes_of_the_training_list_and_ood_sets_have_none(name, tmp_path):
    index = {"0": 0, "3": 1, "7": 2}
    for kind, images in opened(name, fake_data(tmp_path, name)).items():
        if kind.split(" ")[0] in ID:
            assert images.classes == ("ant", "moth", "wolf")
            assert images.labels == tuple(index[line.split(" ")[1]] for line in lines(kind))
        else:
            assert (images.labels, images.classes) == ((), ())


def test_label_that_the_training_list_does_not_have_is_refused(tmp_path):
    fake_data(tmp_path, "cifar10")
    for label in ("5", "-1"):
        (tmp_path / "benchmark_imglist/cifar10/test_cifar10.txt").write_text(f"set/test/ant/1.png {label}\n")
        with pytest.raises(ValueError, match=rf"test_cifar10\.txt has labels \[{label}\]"):
            open_part("cifar10", tmp_path, "test")


def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_imagenet200\.txt is missing.*--datasets imagenet-200`"):
        open_part("imagenet200", tmp_path, "test")
    fake_data(tmp_path, "imagenet200")
    (tmp_path / "benchmark_imglist/imagenet200/test_ninco.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_ninco\.txt is missing.*download\.py --contents datasets"):
        open_group("imagenet200", tmp_path, "near_ood")
    (tmp_path / "benchmark_imglist/imagenet200/test_textures.txt").write_text("texture/a/1.jpg -1\n")
    message = r"images_classic.texture.a.1\.jpg, the first image .* --datasets texture --dataset_mode dataset"
    with pytest.raises(FileNotFoundError, match=message):
        open_group("imagenet200", tmp_path, "far_ood")
    (tmp_path / "benchmark_imglist/imagenet200/train_imagenet200.txt").write_text("imagenet_1k/train/n1/1.jpg 0\n")
    with pytest.raises(FileNotFoundError, match=r"ImageNet's training images come from image-net\.org"):
        open_part("imagenet200", tmp_path, "train")


@pytest.mark.parametrize("kind", ["test", "near_ood cifar100", "far_ood mnist"])
@pytest.mark.parametrize("option", ["validation", "validation_ood"])
def test_nothing_is_chosen_by_test_images(kind, option, tmp_path):
    list_name, folder = PLACES["cifar10"][kind]
    root = fake_data(tmp_path, "cifar10")
    place = str(root / "benchmark_imglist" / "." / f"{list_name}.txt")
    source = TestImages(benchmark="cifar10", root=str(root), image_root=str(root / folder), **{option: place})
    with pytest.raises(ValueError, match="are test images, by which nothing may be chosen"):
        open_test_images(source, ["ash_b"], search=True)


def test_unknown_benchmarks_parts_and_groups_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no benchmark named 'svhn': choose one of \['cifar10', 'cifar100', "):
        open_part("svhn", tmp_path, "train")
    with pytest.raises(ValueError, match=r"imagenet has no part 'outliers': choose one of \['train', "):
        open_part("imagenet", tmp_path, "outliers")
    with pytest.raises(ValueError, match=r"no group 'ood' of test sets: choose one of \['near_ood', "):
        open_group("cifar10", tmp_path, "ood")


# Weights


class Block(nn.Module):
    """Two 3 x 3 convolutions and a way around them, which has weights where the shape changes (He et al. 2016)."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if (inner, stride) != (outer, 1):
            self.shortcut.extend([nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)])

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class SmallResNet18(nn.Module):
    """ResNet-18 for small images: stem of 3 x 3 without pooling, four stages of two blocks, mean over the last map."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean(dim=(2, 3)))


def trained(size: int) -> Detector:
    """A detector with weights, and statistics of its normalizing layers, that differ from layer to layer."""
    torch.manual_seed(0)
    detector = Detector(list("abcde"), "resnet18", size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)).eval()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                values.uniform_(0.5, 1.5)
    return detector


def logits_on_normalized(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(normalize(pixels, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))


@pytest.mark.parametrize(
    ("size", "architecture"), [(32, SmallResNet18), (64, SmallResNet18), (224, torchvision.models.resnet18)]
)
@torch.no_grad()
def test_weights_load_strictly_elsewhere_and_give_the_same_logits(size, architecture, tmp_path):
    detector, network = trained(size), architecture(num_classes=5)
    save_resnet18(detector, tmp_path / "s0" / "best.ckpt")
    network.load_state_dict(torch.load(tmp_path / "s0" / "best.ckpt", weights_only=True), strict=True)
    assert [path.name for path in (tmp_path / "s0").iterdir()] == ["best.ckpt"]
    pixels = torch.rand(2, 3, size, size)
    torch.testing.assert_close(detector(pixels), logits_on_normalized(network, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["resnet8", "resnet20", "timm:resnet18"])
def test_other_networks_are_refused(network, tmp_path):
    detector = Detector(["a", "b"], network, 32)
    for use in (resnet18_state_dict, lambda d: save_resnet18(d, tmp_path / "x.ckpt")):
        with pytest.raises(ValueError, match="network of the detector is not 'resnet18'"):
            use(detector)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"feature_scale": 0.5}, {"heads": 2}])
def test_networks_that_openood_has_otherwise_are_refused(settings, tmp_path):
    """Its network would load the weights of the first, and give other logits."""
    detector = Detector(["a", "b"], "resnet18", 32, **settings)
    with pytest.raises(ValueError, match="OpenOOD's ResNet-18 has one head, on features as they come"):
        save_resnet18(detector, tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())


# Outlier sets


def read_as_openood(path: str, data_dir: str) -> list[tuple[torch.Tensor, int]]:
    """Its rule: a line is parted at the first space; the path follows `data_dir`, the rest is a Python literal."""
    found = []
    with open(path) as file:
        for line in file.readlines():
            name, label = line.strip("\n").split(" ", 1)
            assert not name.startswith("/")
            assert ast.literal_eval(label) == int(label)
            with Image.open(data_dir.rstrip("/") + "/" + name) as image:
                found.append((to_tensor(image.convert("RGB")), int(label)))
    return found


CLASS_NAMES = ["T-shirt/top", "test tube", "a  b\tc", "it's 100 %", "ünï", "-1"]


@pytest.fixture
def outlier_set(tmp_path):
    """A set with the images 0, 40, 80, ... of classes whose names are risky in lists."""
    folder = tmp_path / 'the "new" set: 1 🦊'
    (folder / "outliers").mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"ood_labels": ["x"], "format": "folder"}))
    writer, samples = OutlierWriter(folder, "folder"), []
    for number, name in enumerate(CLASS_NAMES):
        path = tmp_path / "one.png"
        Image.new("L", (8, 8), 40 * number).save(path)
        row = {"file_name": f"{folder_name(name)}/{number:016x}.png", "source_key": str(number)}
        samples.append(Sample(row, path.read_bytes(), None))
    writer.commit("all", samples, [])
    writer.finish()
    return folder


def test_openood_reads_an_outlier_set_where_its_configuration_points(outlier_set):
    config = yaml.safe_load(oe_config(outlier_set))["dataset"]
    assert config["split_names"] == ["train", "oe", "val", "test"]
    assert config["oe"]["dataset_class"] == "ImglistDataset"
    images = read_as_openood(config["oe"]["imglist_pth"], config["oe"]["data_dir"])
    assert sorted(round(255 * pixels.mean().item()) for pixels, _ in images) == [0, 40, 80, 120, 160, 200]
    assert {label for _, label in images} == {-1}
    assert len(open_images(outlier_set / "outliers.txt")) == len(images)


def test_configuration_of_a_folder_given_from_here_holds_elsewhere(outlier_set, monkeypatch):
    monkeypatch.chdir(outlier_set.parent)
    assert oe_config(outlier_set.name) == oe_config(outlier_set)


def test_places_may_start_at_home(outlier_set, tmp_path, monkeypatch):
    home = fake_data(tmp_path, "cifar10")
    monkeypatch.setenv("HOME", str(outlier_set.parent))
    assert oe_config(f"~/{outlier_set.name}") == oe_config(outlier_set)
    monkeypatch.setenv("HOME", str(home))
    assert open_part("cifar10", "~", "test").keys == open_part("cifar10", home, "test").keys


def test_configuration_needs_an_image_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no outliers\.txt: give an outlier set of the format 'folder'"):
        oe_config(tmp_path)
