"""Whether half precision leaves a trace: can a detector tell by which dtype an image was made?

    python examples/benchmarks/half_precision.py

About half an hour of processor time. ID images of the bundled sample are made anew by the embedded model, with the same
seeds, in float32 and in other ways: as round trips of the autoencoder, noised and denoised without guidance, and as
outliers. All are rounded to 8 bits, as their files are. A small convolutional network is trained to tell the two ways
from each other on both versions of half of the images, and tested on the other half. Results are in
`examples/benchmarks/results/half-precision`.
"""

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import cyclopts
import torch
from cyclopts.types import PositiveInt
from sklearn.metrics import roc_auc_score
from torch import nn

from sona_pipeline import TINY_MODEL, GenerationSettings, OutlierMaker, SONAPipeline, plan_outliers, sample

RESULTS = Path(__file__).parent / "results" / "half-precision"
STEPS, BATCH = 10, 50
PAIRS, TRAINING_STEPS = 32, 300
WITHIN = 3.0
FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
KINDS = {"round trips": None, "denoised": 0.0, "outliers": 10.0}
"""What is made, with its guidance scale."""


class Denoiser(NamedTuple):
    """Dtypes of the UNet, and of the latents between two steps."""

    unet: torch.dtype = FLOAT32
    latents: torch.dtype = FLOAT32


WHOLE, HALF, ROUNDED = Denoiser(), Denoiser(BFLOAT16), Denoiser(BFLOAT16, BFLOAT16)
WAYS = {
    "UNet in bfloat16: `--dtype bfloat16`": (HALF, FLOAT32),
    "autoencoder in bfloat16": (WHOLE, BFLOAT16),
    "autoencoder in float16": (WHOLE, FLOAT16),
    "UNet and latents in bfloat16": (ROUNDED, FLOAT32),
    "UNet, latents and autoencoder in bfloat16": (ROUNDED, BFLOAT16),
}
"""Each with its denoiser and the dtype of the autoencoder."""


def main(*, output: Path = RESULTS, images: PositiveInt = 400, seeds: PositiveInt = 3) -> None:
    """Write `results.md` and `run.json`.

    Args:
        output: Folder of the results.
        images: How many ID images; half of them train the detector.
        seeds: How many splits and detectors, from 0 on.
    """
    started = time.monotonic()
    latents = {denoiser: made(denoiser, images) for denoiser in (WHOLE, HALF, ROUNDED)}
    expected, rows = decoded(latents[WHOLE], FLOAT32), []
    for name, (denoiser, dtype) in WAYS.items():
        found = decoded(latents[denoiser], dtype)
        for kind in KINDS:
            changed = 100 * (expected[kind] != found[kind]).float().mean().item()
            aurocs = [auroc(expected[kind], found[kind], seed) for seed in range(seeds)] if changed else []
            rows.append({"way": name, "images": kind, "pixels that differ": changed, "auroc": aurocs})
            print(rows[-1], flush=True)
    run = {
        "command": f"python examples/benchmarks/half_precision.py --images {images} --seeds {seeds}",
        "rows": rows,
        "steps": STEPS,
        "versions": {package: version(package) for package in ("sona-pipeline", "torch", "diffusers")},
        "python": platform.python_version(),
        "minutes_of_this_run": round((time.monotonic() - started) / 60, 1),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    (output / "results.md").write_text(page(run, images, seeds), encoding="utf-8")


def pipeline(unet: torch.dtype = FLOAT32, vae: torch.dtype = FLOAT32) -> SONAPipeline:
    """The embedded model, with UNet and autoencoder in these dtypes."""
    pipe = SONAPipeline.from_pretrained(TINY_MODEL, dtype={"unet": unet, "vae": vae, "default": FLOAT32})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def made(denoiser: Denoiser, count: int) -> dict[str, torch.Tensor]:
    """Latents `[N, c, h, w]` of the first ID images, by kind; round trips are the sources."""
    pipe, sources = pipeline(denoiser.unet), sample.id_images("train")
    plan = plan_outliers(sources, GenerationSettings(ood_labels=sample.OOD_LABELS, num_inference_steps=STEPS))
    maker, parts = OutlierMaker(pipe, plan), {kind: [] for kind in KINDS}

    def rounded(latents: torch.Tensor) -> torch.Tensor:
        return latents.to(denoiser.latents).float()

    options = {"callback_on_step_end": lambda pipe, step, t, tensors: {"latents": rounded(tensors["latents"])}}
    for start in range(0, count, BATCH):
        items = [plan[k] for k in range(start, min(start + BATCH, count))]
        pixels = pipe.preprocess_image([sources.image(item.index) for item in items])
        for kind, scale in KINDS.items():
            generators = [torch.Generator().manual_seed(item.seed) for item in items]
            latents = rounded(pipe.encode_image(pixels, pipe.device, generators))
            if scale is not None:
                latents = maker.denoised(items, latents, generators, guidance_scale=scale, **options)
            parts[kind].append(latents)
    return {kind: torch.cat(some) for kind, some in parts.items()}


@torch.no_grad()
def decoded(latents: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Pixels `[N, C, H, W]` of 8 bits of latents, by kind, from an autoencoder in a dtype."""
    pipe, found = pipeline(vae=dtype), {}
    for kind, some in latents.items():
        parts = [pipe.decode(part, "pt")[0].float() for part in some.split(BATCH)]
        found[kind] = (torch.cat(parts) * 255).round().to(torch.uint8)
    return found


def auroc(one: torch.Tensor, other: torch.Tensor, seed: int) -> float:
    """AUROC in percent of a network that is trained on half of the images, on the other half; 50 is chance.

    Args:
        one, other: pixels `[N, C, H, W]` of two versions of the same images.
        seed: of the split, the weights and the order.
    """
    torch.manual_seed(seed)
    pairs = torch.stack([one, other], dim=1)[torch.randperm(len(one))].float() / 127.5 - 1
    training, tested = pairs.chunk(2)
    network = Probe(pairs.shape[2])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=TRAINING_STEPS)
    for _ in range(TRAINING_STEPS):
        chosen = training[torch.randint(len(training), (PAIRS,))]
        scores = network(chosen.flatten(0, 1))
        loss = nn.functional.binary_cross_entropy_with_logits(scores, torch.tensor([0.0, 1.0]).repeat(PAIRS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        scores = network.eval()(tested.flatten(0, 1))
    return 100 * float(roc_auc_score([0, 1] * len(tested), scores))


class Probe(nn.Module):
    """A network for faint noise: images beside what their mean over 3 x 3 pixels leaves, in full resolution."""

    def __init__(self, channels: int, width: int = 16):
        super().__init__()
        layers, before = [], 2 * channels
        for _ in range(3):
            layers += [nn.Conv2d(before, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = x - nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
        return self.head(self.layers(torch.cat([x, 16 * fine], dim=1)).mean(dim=(2, 3)))[:, 0]


def page(run: dict, images: int, seeds: int) -> str:
    """The results in Markdown."""
    lines = [
        "# Does half precision leave a trace?\n",
        f"`{run['command']}`, {run['minutes_of_this_run']} minutes.\n",
        f"AUROC in percent of a small network that has to tell images made in float32 from the same {images} ID images",
        f"made another way ({STEPS} steps of DDIM, 8 bits); trained on half of them and tested on the other half, mean",
        f"± standard deviation over {seeds} splits. 50 is chance; no trace means within {WITHIN:g} of it.\n",
        "| what is not in float32 | images | pixels that differ, % | AUROC | no trace |",
        "|---|---|--:|--:|---|",
    ]
    for row in run["rows"]:
        said = f"{row['way']} | {row['images']} | {row['pixels that differ']:.1f}"
        if not row["auroc"]:
            lines.append(f"| {said} | the same files | yes |")
            continue
        found = mean(row["auroc"])
        spread = f" ± {stdev(row['auroc']):.1f}" if len(row["auroc"]) > 1 else ""
        lines.append(f"| {said} | {found:.1f}{spread} | {'yes' if abs(found - 50) <= WITHIN else 'no'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
