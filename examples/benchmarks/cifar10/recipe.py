"""What each change of the diffusion model's recipe gave: short trainings, each with one of the changes taken back."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from judge import CLASSES, Judge
from model import draw_sheet, load_model
from outcome import Part, package_versions, write_parts

from sona_pipeline import settle_settings, write_text

SCRIPT = Path(__file__).parents[2] / "train_latent_diffusion.py"
BEFORE: dict[str, Any] = {
    "components": 12,
    "flips": False,
    "prediction_type": "epsilon",
    "snr_gamma": 0.0,
    "bfloat16": False,
    "batch_size": 64,
    "learning_rate": 1e-3,
}
"""Of the model in `trained`, as options of the script."""
RECIPE: dict[str, Any] = {
    "components": 16,
    "flips": True,
    "prediction_type": "v_prediction",
    "snr_gamma": 5.0,
    "bfloat16": True,
    "batch_size": 128,
    "learning_rate": 2e-3,
}
"""Of the embedded model."""
WHOLE = "recipe"
TRAININGS = {WHOLE: RECIPE, **{name: RECIPE | {name: BEFORE[name]} for name in RECIPE}, "before": BEFORE}
"""Options, by the one that is taken back; or of the whole recipe, and of the one before."""
FOLDER, FOUND = "recipe", "judged.json"
NOTE = """In %, with the standard error of so many images; beside the recipe, the difference. Minutes are those of the
training, where it was not stopped in between."""


def judge_recipe(name: str, output: Path, judge: Judge, steps: int, per_class: int, seed: int) -> None:
    """Train one of `TRAININGS` below `output`, unless it is done, and let the judge say what its model draws.

    Raises:
        ValueError: the folder has a training with other settings.
    """
    folder = output / FOLDER / name
    settle_settings(folder / "settings.json", TRAININGS[name] | {"steps": steps, "images": per_class, "seed": seed})
    if (folder / FOUND).exists():
        return
    is_new, started = not (folder / "model").exists(), time.monotonic()
    data, model = output / "diffusion.parquet", folder / "model"
    length = {"unet_steps": steps, "sample_every": steps, "seed": seed}
    options = {"data": data, "output": model, "autoencoder": "patches", **length, **TRAININGS[name]}
    subprocess.run([sys.executable, SCRIPT, *_as_arguments(options)], check=True)
    minutes = round((time.monotonic() - started) / 60, 1) if is_new else None
    shares = draw_sheet(load_model(model), judge, folder, per_class)
    write_text(folder / FOUND, json.dumps({"shares": shares, "minutes": minutes, "versions": package_versions()}))


def write_recipe(output: Path, results: Path, command: str, per_class: int) -> None:
    """Write the table of all trainings that are done below `output`."""
    files = {name: output / FOLDER / name / FOUND for name in TRAININGS}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    shares, rows = {name: one["shares"]["all"] for name, one in found.items()}, []
    for name, share in shares.items():
        title = f"{name} {BEFORE[name]}, not {RECIPE[name]}" if name in RECIPE else name
        error = (share * (100 - share) / (per_class * len(CLASSES))) ** 0.5
        beside = f"{share - shares[WHOLE]:+.1f}" if WHOLE in shares and name != WHOLE else ""
        minutes = "-" if found[name]["minutes"] is None else found[name]["minutes"]
        row = {"training": title, "drawn as asked": f"{share:.1f} ± {error:.1f}", "beside the recipe": beside}
        rows.append(row | {"minutes": minutes})
    run = {"command": command, "versions": {name: one["versions"] for name, one in found.items()}}
    part = Part("Images that the judge puts into the class asked for", NOTE, pd.DataFrame(rows), "recipe.csv")
    write_parts(results / FOLDER, "What each change of the recipe gave", run, [part])


def _as_arguments(options: dict[str, Any]) -> list[str]:
    named = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not False}
    return [part for name, value in named.items() for part in ([name] if value is True else [name, str(value)])]
