"""Fashion-MNIST as the parquet files that the embedded model and the bundled sample are made from.

    apt-get install dataset-fashion-mnist
    python examples/prepare_fashion_mnist.py --source /usr/share/datasets/fashion-mnist --output fashion-mnist

Images are laid on a black 32 x 32 canvas (two pixels on every side), without resampling. Written are
`diffusion.parquet` (what the embedded model is trained on: 8 of the 10 classes, without the sample's validation
images), `judge.parquet` (the test images of the 8 classes), and `sample/{train,validation,test,near,outliers}.parquet`.
"""

import gzip
from pathlib import Path

import cyclopts
import datasets
import numpy as np
from PIL import Image

CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
ID_CLASSES = ["t-shirt", "trouser", "pullover", "dress", "shirt", "sneaker"]
OOD_CLASSES = ["bag", "sandal"]
NEAR_CLASSES = ["coat", "ankle boot"]


def read_idx(source: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, 28, 28]` and labels `[N]` of the part 'train' or 't10k', from the gzipped IDX files."""
    images = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def write(path: Path, part: str, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, classes: list[str]) -> None:
    """Write the `rows` of a part to a parquet file with PNG images, class labels and keys."""
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=classes), key=datasets.Value("string")
    )
    padded = np.pad(images[rows], ((0, 0), (2, 2), (2, 2)))
    table = datasets.Dataset.from_dict(
        {
            "image": [Image.fromarray(pixels) for pixels in padded],
            "label": [classes.index(CLASSES[labels[row]]) for row in rows],
            "key": [f"{part}-{row:05d}" for row in rows],
        },
        features=features,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    print(f"{path}: {len(rows)} images of {classes}")


def rows_of(labels: np.ndarray, classes: list[str], count: int | None, rng: np.random.Generator) -> np.ndarray:
    """`count` random rows of each class (all of them for None), shuffled."""
    chosen = [rng.permutation(np.flatnonzero(labels == CLASSES.index(name)))[:count] for name in classes]
    return rng.permutation(np.concatenate(chosen))


def main(
    *,
    source: Path,
    output: Path,
    train_count: int = 250,
    validation_count: int = 100,
    test_count: int = 300,
    near_count: int = 600,
    outlier_count: int = 750,
) -> None:
    """Write the parquet files that this file's head describes.

    Args:
        source: Folder with the four .gz files of Fashion-MNIST.
        output: Folder to write to.
        train_count: Sample: training images a class.
        validation_count: Sample: validation images a class.
        test_count: Sample: ID test images a class.
        near_count: Sample: near-OOD test images a class.
        outlier_count: Sample: real outliers to train on, a class.
    """
    rng = np.random.default_rng(0)
    images, labels = read_idx(source, "train")
    held_out = rows_of(labels, ID_CLASSES, validation_count, rng)
    write(output / "sample" / "validation.parquet", "train", images, labels, held_out, ID_CLASSES)

    known = np.setdiff1d(rows_of(labels, ID_CLASSES + OOD_CLASSES, None, rng), held_out)
    write(output / "diffusion.parquet", "train", images, labels, known, ID_CLASSES + OOD_CLASSES)
    usable = np.where(np.isin(np.arange(len(labels)), held_out), 255, labels)
    rows = rows_of(usable, ID_CLASSES, train_count, rng)
    write(output / "sample" / "train.parquet", "train", images, labels, rows, ID_CLASSES)

    images, labels = read_idx(source, "t10k")
    rows = rows_of(labels, ID_CLASSES + OOD_CLASSES, None, rng)
    write(output / "judge.parquet", "test", images, labels, rows, ID_CLASSES + OOD_CLASSES)
    rows = rows_of(labels, ID_CLASSES, test_count, rng)
    write(output / "sample" / "test.parquet", "test", images, labels, rows, ID_CLASSES)
    rows = rows_of(labels, NEAR_CLASSES, near_count, rng)
    write(output / "sample" / "near.parquet", "test", images, labels, rows, NEAR_CLASSES)

    images, labels = read_idx(source, "train")
    rows = rows_of(labels, OOD_CLASSES, outlier_count, rng)
    write(output / "sample" / "outliers.parquet", "train", images, labels, rows, OOD_CLASSES)


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
