import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.detection.detector import Detector
from sona_pipeline.evaluation.openood import open_group, open_part
from sona_pipeline.evaluation.prepared import as_seen
from sona_pipeline.evaluation.score_table import TestSets, score_images

BILINEAR = transforms.InterpolationMode.BILINEAR
SIZES = ((500, 375), (375, 501), (333, 224), (225, 600), (64, 48), (32, 32), (224, 224))


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pictures(folder) -> list[str]:
    """Photographs of many sizes and modes, one with a tag that would turn it; names of the files."""
    folder.mkdir(parents=True)
    names = []
    for number, size in enumerate(SIZES):
        names.append(f"{number}.png")
        noise(size, number).save(folder / names[-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    noise((300, 260), 50).save(folder / "turned.jpg", exif=exif, quality=95)
    noise((280, 300), 51).convert("L").save(folder / "grey.png")
    clear = noise((280, 300), 52)
    clear.putalpha(noise((280, 300), 53).convert("L"))
    clear.save(folder / "clear.png")
    noise((280, 300), 54).convert("P").save(folder / "palette.png")
    return [*names, "turned.jpg", "grey.png", "clear.png", "palette.png"]


def benchmark(root, name: str, images: str) -> dict[str, ImageSet]:
    names = pictures(root / images / "set")
    for stem in (f"train_{name}", f"test_{name}", "test_imagenet200_c", "test_imagenet200_v2", "test_imagenet200_r"):
        path = root / "benchmark_imglist" / name / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"set/{file} 0\n" for file in names))
    found = {"test": open_part(name, root, "test")}
    return found | (open_group(name, root, "covariate") if name == "imagenet200" else {})


def openoods(resize: int, crop: int):
    """The transforms that OpenOOD's evaluation puts together for its test images, less the normalization."""
    return transforms.Compose(
        [
            transforms.Lambda(lambda image: image.convert("RGB")),
            transforms.Resize(resize, interpolation=BILINEAR),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
        ]
    )


@pytest.mark.parametrize(
    ("name", "images", "resize", "crop"),
    [("cifar10", "images_classic", 32, 32), ("imagenet200", "images_largescale", 256, 224)],
)
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_images_of_a_benchmark_are_pixel_for_pixel_those_of_openood(tmp_path, name, images, resize, crop, crop_pct):
    found = benchmark(tmp_path, name, images)["test"]
    detector = Detector(["a"], image_size=crop, crop_pct=crop_pct)
    assert len(found) == len(SIZES) + 4
    for index, file in enumerate(found.keys):
        with Image.open(tmp_path / images / file) as stored:
            expected = openoods(resize, crop)(stored)
        assert torch.equal(as_seen(found, index, detector).float() / 255, expected), file


def test_images_of_imagenet_c_are_taken_as_they_are(tmp_path):
    sets = benchmark(tmp_path, "imagenet200", "images_largescale")
    detector, index = Detector(["a"], image_size=224), SIZES.index((224, 224))
    with Image.open(tmp_path / "images_largescale" / sets["test"].keys[index]) as stored:
        expected = transforms.ToTensor()(stored)
    assert torch.equal(as_seen(sets["imagenet_c"], index, detector).float() / 255, expected)
    assert not torch.equal(as_seen(sets["imagenet_v2"], index, detector).float() / 255, expected)


def test_a_detector_of_another_size_sees_the_same_part_of_an_image(tmp_path):
    found = benchmark(tmp_path, "imagenet200", "images_largescale")["test"]
    with Image.open(tmp_path / "images_largescale" / found.keys[0]) as stored:
        expected = openoods(128, 112)(stored)
    assert torch.equal(as_seen(found, 0, Detector(["a"], image_size=112)).float() / 255, expected)


def test_scores_are_of_the_images_as_openood_has_them(tmp_path):
    found = benchmark(tmp_path, "cifar10", "images_classic")["test"]
    torch.manual_seed(0)
    detector = Detector(list(found.classes), image_size=32).eval()
    table = score_images(detector, TestSets(found), ["max_logit"])
    expected = []
    for file in found.keys:
        with Image.open(tmp_path / "images_classic" / file) as stored, torch.no_grad():
            expected.append(-detector(openoods(32, 32)(stored)[None]).max().item())
    assert table["max_logit"].tolist() == pytest.approx(expected, rel=1e-4)


def test_own_images_keep_the_detectors_filter():
    image = noise((300, 200), 1)
    plain, detector = ImageSet(("a",), (), (), lambda _: image), Detector(["a"])
    assert torch.equal(as_seen(plain, 0, detector), detector.one(image))
    assert not torch.equal(detector.one(image).float() / 255, openoods(32, 32)(image))


def test_a_file_that_is_no_image_is_named(tmp_path):
    found = benchmark(tmp_path, "cifar10", "images_classic")["test"]
    (tmp_path / "images_classic" / found.keys[2]).write_bytes(b"no image")
    with pytest.raises(OSError, match=r"2\.png cannot be read as an image"):
        found.image(2)
