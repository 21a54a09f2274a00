"""Size and codec of an outlier set: bytes of real photos, and what the codec does to detectors.

    pip install scikit-image                                  # for more photos
    python examples/benchmarks/sizes.py --output sizes

About eight minutes on one core. Tables and settings land in `OUTPUT/results`; those of the README are in
`examples/benchmarks/results/sizes`.

**Bytes.** 300 square crops of eight photos that scikit-learn, matplotlib and scikit-image ship, with sides from 256
pixels to the short side of the photo and at places drawn at random, scaled to 512 px as `sona generate` scales ID
images. They stand for outliers and round trips, which look much like photos. ImageNet-200's set is as many outliers as
the training list has images, and as many round trips.

**Detectors** are trained with the recipe and score of `sona quickstart`, on 400 of its training images and outliers of
10 UniPC steps, and tested on real images, which undergo no codec. Kept at 32 px, what is kept has the model's and the
detector's size; kept at 16 px for a detector that sees 16 px it is scaled down in the job, as 512 px are for a detector
of 224. Codecs without a loss give equal pixels, which is checked, and hence equal detectors.
"""

import io
import json
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cyclopts
import numpy as np
import pandas as pd
from cyclopts.types import PositiveInt
from PIL import Image

from sona_pipeline import (
    RECIPES,
    GenerationSettings,
    ImageSet,
    KeptForm,
    OutlierPairs,
    OutputSettings,
    TestSets,
    evaluate_detectors,
    fit,
    generate_outliers,
    load_pipeline,
    open_outlier_set,
    sample,
    train_detector,
    with_spread,
)

PHOTOS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/rocket.jpg",
        "data/motorcycle_left.png",
    ),
}
MODEL, DETECTOR, CROPS, SMALLEST = 512, 224, 300, 256
TODAY = "PNG, 512 px"
FORMS = {
    TODAY: KeptForm(MODEL, MODEL),
    "PNG, 224 px": KeptForm(MODEL, DETECTOR),
    "WebP, 224 px": KeptForm(MODEL, DETECTOR, "webp"),
    **{f"JPEG {quality}, 224 px": KeptForm(MODEL, DETECTOR, "jpeg", quality) for quality in (95, 90, 75)},
    "JPEG 90, 256 px": KeptForm(MODEL, 256, "jpeg", 90),
}
IMAGENET_200 = 258_951
"""Images in OpenOOD's training list."""
SMALL_FORMS = {
    "PNG or WebP, 32 px; detector 32 px": (KeptForm(32, 32), 32),
    "JPEG 90, 32 px; detector 32 px": (KeptForm(32, 32, "jpeg", 90), 32),
    "PNG or WebP, 32 px; detector 16 px": (KeptForm(32, 32), 16),
    "PNG or WebP, 16 px; detector 16 px": (KeptForm(32, 16), 16),
    "JPEG 90, 16 px; detector 16 px": (KeptForm(32, 16, "jpeg", 90), 16),
}


def photos() -> dict[str, Image.Image]:
    """The photos by their names, in RGB."""
    found = {}
    for package, files in PHOTOS.items():
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"{package} is missing, whose photos are measured: pip install scikit-image")
        for file in files:
            path = Path(spec.submodule_search_locations[0]) / file
            found[path.stem] = Image.open(path).convert("RGB")
    return found


def crops(count: int, seed: int = 0) -> list[tuple[str, Image.Image]]:
    """Square crops of the photos by turns, scaled to the size of the model, with the name of their photo."""
    rng, found = np.random.default_rng(seed), list(photos().items())
    cut = []
    for k in range(count):
        name, photo = found[k % len(found)]
        side = int(rng.integers(SMALLEST, min(photo.size) + 1))
        left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
        cut.append((name, fit(photo.crop((left, top, left + side, top + side)), MODEL)))
    return cut


def bytes_by_form(count: int) -> pd.DataFrame:
    """Bytes of each crop, a row, in each form."""
    pictures = crops(count)
    rows = [
        {"photo": name} | {form: len(kept.encoded(crop)) for form, kept in FORMS.items()} for name, crop in pictures
    ]
    return pd.DataFrame(rows)


def table_of_bytes(found: pd.DataFrame) -> pd.DataFrame:
    """Means and spreads of the bytes of an image, and what a set for ImageNet-200 would take."""
    kinds = found[list(FORMS)]
    by_photo = found.groupby("photo").mean()
    rows = {}
    for name in FORMS:
        mean, shares = kinds[name].mean(), by_photo[name] / by_photo[TODAY]
        rows[name] = {
            "kB an image": with_spread(mean / 1e3, kinds[name].std() / 1e3),
            "of today's, %": f"{100 * mean / kinds[TODAY].mean():.1f}",
            "by photo, %": f"{100 * shares.min():.1f} to {100 * shares.max():.1f}",
            "ImageNet-200, GB": f"{2 * IMAGENET_200 * mean / 1e9:.1f}",
        }
    return pd.DataFrame(rows).T


def as_kept(pairs: OutlierPairs, form: KeptForm) -> OutlierPairs:
    """A set of PNG files as it would be if it had been kept in another form."""

    def kept(image: Image.Image) -> Image.Image:
        return Image.open(io.BytesIO(form.encoded(image)))

    return replace(
        pairs, outliers=pairs.outliers.changed(kept), reconstructions=pairs.reconstructions.changed(kept), form=form
    )


def check_lossless(pairs: OutlierPairs) -> int:
    """The number of pictures that WebP gives back as they were; ValueError if one is another one."""
    webp, count = as_kept(pairs, KeptForm(32, 32, "webp")), 0
    for ones, others in ((pairs.outliers, webp.outliers), (pairs.reconstructions, webp.reconstructions)):
        for i in range(len(ones)):
            if (np.asarray(ones.image(i).convert("RGB")) != np.asarray(others.image(i).convert("RGB"))).any():
                raise ValueError(f"WebP has changed {ones.keys[i]}")
            count += 1
    return count


def detectors(output: Path, images: ImageSet, seeds: int, epochs: int) -> tuple[pd.DataFrame, int]:
    """Train a detector for each form and seed: their AUROCs, and how many pictures WebP gave back as they were."""
    validation, made, equal = sample.id_images("validation"), [], 0
    pipe = load_pipeline("tiny", "cpu", scheduler="unipc")
    for seed in range(seeds):
        settings = GenerationSettings(ood_labels=sample.OOD_LABELS, num_inference_steps=10, seed=seed)
        folder = generate_outliers(images, pipe, output / f"outliers-{seed}", settings, OutputSettings(batch_size=64))
        pairs = open_outlier_set(folder, images)
        equal += check_lossless(pairs)
        for name, (form, side) in SMALL_FORMS.items():
            place = output / "detectors" / f"{form.codec}-{form.size}-{side}-{seed}"
            recipe = replace(RECIPES["small"], outlier_augmentation="none", epochs=epochs)
            training = replace(recipe, image_size=side, seed=seed)
            title = f"{name}, seed {seed}"
            train_detector(
                pairs.images, training, validation=validation, outliers=as_kept(pairs, form), output=place, title=title
            )
            made.append((name, str(place)))
    sets = TestSets(sample.id_images("test"), sample.near_ood(), sample.far_ood())
    by_name = sorted(made, key=lambda one: list(SMALL_FORMS).index(one[0]))
    return evaluate_detectors(by_name, sets, output / "evaluation"), equal


def table_of_detectors(found: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, a row a form."""
    columns = {
        "near-OOD AUROC": ("near_ood", "mean", "auroc"),
        "far-OOD AUROC": ("far_ood", "mean", "auroc"),
        "ID accuracy": ("id", "id", "accuracy"),
    }
    rows: dict[str, dict[str, str]] = {name: {} for name in SMALL_FORMS}
    for title, (group, name, metric) in columns.items():
        some = found[(found["group"] == group) & (found["metric"] == metric)]
        some = some[some["set"] == name] if group != "id" else some
        for row in some.itertuples():
            rows[row.method][title] = with_spread(row.mean, row.std)
    return pd.DataFrame(rows).T


def as_markdown(table: pd.DataFrame, corner: str) -> str:
    lines = [[corner, *table.columns], ["---", *["--:"] * len(table.columns)]]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy().tolist())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    *,
    output: Path = Path("sizes"),
    crops: PositiveInt = CROPS,
    images: PositiveInt = 400,
    seeds: PositiveInt = 3,
    epochs: PositiveInt = RECIPES["small"].epochs,
) -> None:
    """Measure, train, and write `OUTPUT/results/results.md`, `bytes.csv` and `run.json`.

    Args:
        output: Folder for sets, detectors and results.
        crops: How many photos are measured.
        images: ID images that detectors are trained on.
        seeds: Outlier sets, and detectors of each form.
        epochs: Passes over the ID images.
    """
    started = time.monotonic()
    sizes = bytes_by_form(crops)
    found, equal = detectors(output, sample.id_images("train").drawn(images), seeds, epochs)
    text = f"""# Size and codec of what is kept

Bytes of {crops} crops of {len(photos())} photos, mean ± standard deviation over the crops; "by photo" is the range of
the photos' means. ImageNet-200's set is {IMAGENET_200:,} outliers and as many round trips.

{as_markdown(table_of_bytes(sizes), "kept as")}

Detectors on the bundled sample, in %, mean ± standard deviation over {seeds} seeds; {images} ID images,
{epochs} epochs, test images as they are. WebP gave back all of {equal} pictures pixel by pixel.

{as_markdown(table_of_detectors(found), "outliers and round trips kept as")}
"""
    run = {
        "crops": crops,
        "photos": sizes["photo"].value_counts().sort_index().to_dict(),
        "images": images,
        "seeds": seeds,
        "epochs": epochs,
        "versions": {name: version(name) for name in ("sona-pipeline", "torch", "diffusers", "pillow", "scikit-learn")},
        "python": platform.python_version(),
        "minutes_of_this_run": round((time.monotonic() - started) / 60, 1),
    }
    results = output / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "results.md").write_text(text, encoding="utf-8")
    (results / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    sizes.to_csv(results / "bytes.csv", index=False, lineterminator="\n")
    print(text)


if __name__ == "__main__":
    cyclopts.run(main)
