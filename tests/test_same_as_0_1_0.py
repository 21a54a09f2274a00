"""The move into wings changed no output: generate, train and evaluate beside version 0.1.0, byte for byte.

0.1.0 is taken from the history of the repository, and both versions run here, since the last digits of floating-point
numbers differ between processors. A later change that is meant to change an output takes its file out of here.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from warm_python import fresh_python

from sona_pipeline import sample

ROOT = Path(__file__).parents[1]
NEW = (
    *("channel_order", "m_in", "m_out", "freeze_batch_norm", "max_accuracy_drop", "outlier_augmentation", "parameters"),
    *("id_rate", "class_thresholds", "neighbours", "nearest", "score_parts"),
    *("feature_scale", "heads", "way", "blend", "ood_embeddings"),
    *("min_strength", "save_size", "codec", "quality", "outlier_form", "outlier_content"),
)
"""What 0.1.0 does not write: settings of detectors, trainings and sets, and parameters of scores in the results."""
COMMIT = "ee43f02"
LINES = [
    "generate --data images --model tiny --ood-labels labels.txt --steps 6 --batch-size 4 --seed 3 --output outliers"
    " --dtype float32 --scheduler ddim --guidance-scale 10 --mask-threshold 0.2",
    "generate --data images --model tiny --ood-labels labels.txt --steps 5 --scheduler unipc --format parquet"
    " --label-choice close --mask-granularity spatial --reject latent_distance<0.1 --dtype float32 --guidance-scale 10"
    " --batch-size 16"
    " --mask-threshold 0.2 --output shards",
    "train --data images --outliers outliers --recipe small --epochs 2 --batch-size 8 --validation-share 0.3 --cpu"
    " --output detector",
    "train --data images --recipe small --epochs 1 --batch-size 8 --method vos --optimizer adamw --keep last"
    " --validation-share 0 --cpu --output plain",
    "evaluate --detector sona=detector --detector vos=plain --id images --near same=copies --score energy --score knn"
    " --fit images --device cpu --output results",
]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A folder with the package as it was."""
    folder = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(["git", "archive", COMMIT, "sona_pipeline"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip("the history of the repository is not here")
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder


def run(code: str, package: Path, folder: Path) -> dict[str, bytes]:
    """Every file that the commands write in `folder`, with the package that lies in `package`."""
    images = sample.id_images("train")
    for i in range(24):
        path = folder / "images" / images.label_name(i) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.image(i).save(path)
    shutil.copytree(folder / "images", folder / "copies")
    (folder / "labels.txt").write_text("bag\nsandal\n")
    lines = json.dumps([line.split() for line in LINES])
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    code = f"import json\n{code}\nfor line in json.loads({lines!r}):\n    call(line)"
    done = subprocess.run([fresh_python(), "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*") if path.is_file()}


def content(path: Path) -> bytes:
    """What a file holds, without versions and what is new.

    Of the scores of images it is the table, since the file names the version of the detector's settings, too.
    """
    if path.parent.name == "scores":
        return pq.read_table(path).to_pandas().to_csv().encode() if path.suffix == ".parquet" else b""
    if path.suffix == ".json":
        hidden = ("notes", *NEW)
        return json.dumps(
            json.loads(path.read_text(), object_hook=lambda x: {k: x[k] for k in x if k not in hidden})
        ).encode()
    return path.read_bytes()


def test_every_file_is_the_same(earlier, tmp_path):
    (tmp_path / "then").mkdir()
    (tmp_path / "now").mkdir()
    then = run(
        "from sona_pipeline.cli import app\ndef call(line): app(line, standalone_mode=False)",
        earlier,
        tmp_path / "then",
    )
    as_then = "['--outlier-augmentation', 'none']"  # the recipe 'small' has changed
    call = f"def call(line): app(line + ({as_then} if line[0] == 'train' else []))"
    now = run(f"from sona_pipeline.cli.app import app\n{call}", ROOT, tmp_path / "now")
    assert now.keys() == then.keys() and len(now) > 100
    assert [name for name in now if now[name] != then[name]] == []
