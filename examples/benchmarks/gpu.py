"""What SONA does on a GPU: speed beside bare UNet calls and SEGA, memory, overlapping stages, agreement with the CPU.

    python examples/benchmarks/gpu.py
    python examples/benchmarks/gpu.py --toy --results gpu-toy

The second command runs the same on a CPU, with models of a few channels. The models have random weights and the sizes
of Stable Diffusion 2 and XL. Each part runs in a process of its own, the most important first: one that fails or takes
too long is recorded, and the next goes on. What is compared is timed in turn, in one process; a ratio is the median
over the rounds, with their range. `RESULTS` gets `run.json` and `results.md` after every row.
"""

import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Annotated

import cyclopts
import numpy as np
import torch
from cyclopts.types import PositiveFloat
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

sys.path.append(str(Path(__file__).parent / "speed"))

from bare_denoiser import BareDenoiser
from device_use import Peak, sampled_use
from family_models import SD2_TOKENS
from guarded import Part, run_parts
from planned import arguments_of, plan_of
from random_models import SIZES, toy, write_model
from report import environment, rows_table
from sega import CONCEPTS, sega_pipeline
from timing import SEED, ratios_by_round, rounds_in_turn, seconds_of, spread

from sona_pipeline import (
    GenerationSettings,
    ImageSet,
    OutputSettings,
    SONAPipeline,
    generate_outliers,
    load_pipeline,
    open_images,
)

SD2, SDXL = SIZES
OUTPUT = Path(__file__).parent / "results" / "gpu"


@dataclass(frozen=True)
class Amounts:
    """How much work the parts do.

    Attributes:
        batches: by model, dtype and images of a call, the most important first.
        rows: by model, about so many UNet rows of a call; it has at least two steps.
        rounds: that count, after one to warm up.
        images, batch_size, steps: of a generated set.
        compared: images that are made on GPU and CPU.
        compiled: images of a call of the compiled UNet.
    """

    batches: dict[str, tuple[tuple[str, int], ...]]
    rows: dict[str, int]
    rounds: int
    images: int
    batch_size: int
    steps: int
    compared: int
    compiled: tuple[int, ...]


H, B = "float16", "bfloat16"
FULL = Amounts(
    batches={
        SD2: ((H, 16), (H, 1), (B, 16), (H, 64), (H, 4), (B, 1), (B, 64), (H, 8), (H, 2), (H, 32)),
        SDXL: ((H, 4), (H, 1), (B, 4), (H, 16)),
    },
    rows={SD2: 192, SDXL: 48},
    rounds=3,
    images=64,
    batch_size=16,
    steps=20,
    compared=32,
    compiled=(16, 1),
)
TOY = Amounts(
    batches={SD2: ((B, 2), (H, 1)), SDXL: ((B, 1),)},
    rows={SD2: 12, SDXL: 6},
    rounds=1,
    images=2,
    batch_size=1,
    steps=2,
    compared=1,
    compiled=(1,),
)


@dataclass(frozen=True)
class Place:
    """Where a part works: on a GPU or as a toy on the CPU, with checkpoints in `folder`."""

    folder: Path
    is_toy: bool

    @property
    def amounts(self) -> Amounts:
        return TOY if self.is_toy else FULL

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.is_toy else torch.accelerator.current_accelerator()

    def pipeline(self, model: str, dtype: str, device: torch.device | None = None, **options) -> SONAPipeline:
        """A checkpoint of the size of `model`, which is made when it is first asked for."""
        sizes = toy(SIZES[model]) if self.is_toy else SIZES[model]
        folder = self.folder / model.replace(" ", "-").lower()
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        write_model(sizes, folder, self.device)
        return load_pipeline(str(folder), device or self.device, dtype=dtype, **options)


# Rows a second, batch size and memory


def of_stable_diffusion_2(place: Place) -> Iterator[dict]:
    """`SONAPipeline` beside bare UNet calls of the same rows, Stable Diffusion 2 at 512 px."""
    yield from beside_bare(place, SD2)


def of_stable_diffusion_xl(place: Place) -> Iterator[dict]:
    """`SONAPipeline` beside bare UNet calls of the same rows, Stable Diffusion XL at 1024 px."""
    yield from beside_bare(place, SDXL)


def beside_bare(place: Place, model: str) -> Iterator[dict]:
    """A call from latents to latents, all images from the first step on, with prompts as embeddings."""
    pipes: dict[str, SONAPipeline] = {}
    for dtype, images in place.amounts.batches[model]:
        pipe = pipes[dtype] = pipes.get(dtype) or place.pipeline(model, dtype)
        row = {"dtype": dtype, "images": images}
        try:
            yield row | speeds_of(pipe, images, place.amounts.rows[model], place.amounts.rounds)
        except torch.OutOfMemoryError as error:
            torch.accelerator.empty_cache()
            yield row | {"note": str(error).partition(".")[0]}


def speeds_of(pipe: SONAPipeline, images: int, rows: int, rounds: int) -> dict:
    """Rows a second of the pipeline and of its bare UNet calls, their ratio, and the peak of memory."""
    call = from_latents(pipe, images, max(2, min(50, rows // (3 * images))))
    peak = Peak()
    bare = BareDenoiser(pipe.unet, call)
    memory = peak.mebibytes()
    seconds = rounds_in_turn({"pipeline": call, "bare": bare}, rounds)
    return {
        "rows": bare.rows,
        "rows a second": per_second(bare.rows, seconds["pipeline"]),
        "bare UNet, rows a second": per_second(bare.rows, seconds["bare"]),
        "pipeline / bare": ratio(seconds["pipeline"], seconds["bare"]),
        "peak MiB": memory,
    }


def from_latents(pipe: SONAPipeline, images: int, steps: int) -> Callable[[], object]:
    """A call of the pipeline that neither encodes nor decodes."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (1, SD2_TOKENS, pipe.unet.config.cross_attention_dim)
    embeds = {f"{name}_prompt_embeds": torch.randn(shape, generator=generator) for name in ("uncond", "id", "ood")}
    side = pipe.unet.config.sample_size
    latents = torch.randn(images, pipe.unet.config.in_channels, side, side, generator=generator)
    return lambda: pipe(
        latents, **embeds, stop_step=steps, num_inference_steps=steps, output_type="latent", generator=generator
    )


def of_sega(place: Place) -> Iterator[dict]:
    """diffusers' SEGA beside SONA, from noise or latents to latents; with one concept both have the same UNet rows."""
    pipe, images, steps = place.pipeline(SD2, H), max(1, place.amounts.batch_size // 2), place.amounts.steps // 2
    other, call = sega_pipeline(pipe), from_latents(pipe, images, steps)

    def sega(concepts: int) -> Callable[[], object]:
        options = {"num_inference_steps": steps, "edit_warmup_steps": 0, "output_type": "latent"}
        prompts, edits = ["a photo of a coat"] * images, CONCEPTS[:concepts]
        return lambda: other(prompts, editing_prompt=edits, generator=torch.Generator().manual_seed(SEED), **options)

    things = {"SONA": call, "SEGA, one concept": sega(1), f"SEGA, {len(CONCEPTS)} concepts": sega(len(CONCEPTS))}
    rows = {name: BareDenoiser(pipe.unet, thing).rows for name, thing in things.items()}
    seconds = rounds_in_turn(things, place.amounts.rounds)
    for name, took in seconds.items():
        yield {
            "of": name,
            "images": images,
            "steps": steps,
            "rows": rows[name],
            "rows a second": per_second(rows[name], took),
            "times as long as SONA": ratio(took, seconds["SONA"]),
        }


def of_compiler(place: Place) -> Iterator[dict]:
    """`--compile` beside none."""
    eager, pipe = place.pipeline(SD2, H), place.pipeline(SD2, H, compile=True)
    for images in place.amounts.compiled:
        steps = max(2, min(50, place.amounts.rows[SD2] // (3 * images)))
        call = from_latents(pipe, images, steps)
        first = seconds_of(call)
        seconds = rounds_in_turn({"eager": from_latents(eager, images, steps), "compiled": call}, place.amounts.rounds)
        yield {
            "images": images,
            "rows a second": per_second(3 * images * steps, seconds["compiled"]),
            "not compiled, rows a second": per_second(3 * images * steps, seconds["eager"]),
            "compiled / not compiled": ratio(seconds["compiled"], seconds["eager"]),
            "seconds of the first call": round(first, 1),
        }


# Whole sets


class Generation:
    """`sona generate` on photos, which are random colours of 640 x 480 pixels, with the settings of its command line.

    The first batch warms up.
    """

    def __init__(self, place: Place, part: int = 0, parts: int = 1):
        amounts = place.amounts
        self.folder, self.count = place.folder, 0
        self.images = photos(place.folder / "photos", amounts.images).take(range(part, amounts.images, parts))
        self.pipe = place.pipeline(SD2, H)
        self.settings = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=amounts.steps, seed=SEED)
        self.writing = OutputSettings(batch_size=amounts.batch_size)
        self.part = part
        self._make(self.images.take(range(min(amounts.batch_size, len(self.images)))))

    def __call__(self) -> None:
        """Make the set, in a folder of its own each time."""
        self._make(self.images)

    def _make(self, images: ImageSet) -> None:
        self.count += 1
        folder = self.folder / f"set-{self.part}-{self.count}-{time.time_ns()}"
        generate_outliers(images, self.pipe, folder, self.settings, self.writing)


def photos(folder: Path, count: int) -> ImageSet:
    """The first `count` photos of a folder, of two classes."""
    for index in range(count):
        path = folder / ("coat", "shirt")[index % 2] / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (15, 20, 3), np.uint8)
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return open_images(str(folder))


def of_generation(place: Place) -> Iterator[dict]:
    """`generate_outliers`, with round trips, checks and PNG files: how busy its overlapping stages keep the GPU."""
    generate, peak = Generation(place), Peak()
    bare = BareDenoiser(generate.pipe.unet, generate)
    memory = peak.mebibytes()
    with sampled_use() as busy:
        took = seconds_of(generate)
    images = len(generate.images)
    yield {
        "images": images,
        "side": generate.pipe.image_size,
        "steps": generate.settings.num_inference_steps,
        "outliers a second": images / took,
        "rows a second": bare.rows / took,
        "generate / bare UNet": took / seconds_of(bare),
        "GPU busy, %": round(mean(busy)) if busy else None,
        "peak MiB": memory,
    }


def of_processes(place: Place) -> Iterator[dict]:
    """The same set made by one process and by two on one GPU, each of which makes its share."""
    alone = None
    for count in (1, 2):
        with ExitStack() as stack:
            pools = [stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for _ in range(count)]
            for ready in [pool.submit(_start, place, part, count) for part, pool in enumerate(pools)]:
                ready.result()
            took = seconds_of(lambda pools=pools: [done.result() for done in [pool.submit(_make) for pool in pools]])
        alone = alone or took
        images = place.amounts.images
        yield {"processes": count, "images": images, "outliers a second": images / took, "times as long": took / alone}


def _start(place: Place, part: int, parts: int) -> None:
    global _generation
    _generation = Generation(place, part, parts)


def _make() -> None:
    _generation()


# GPU and CPU


def of_agreement(place: Place) -> Iterator[dict]:
    """The same outliers on the GPU and, in float32, on the CPU: from pixels to pixels, by the embedded model."""
    plan = plan_of(place.amounts.compared)

    def made(device: torch.device | str, dtype: str) -> torch.Tensor:
        pipe = load_pipeline("tiny", device, dtype=dtype)
        return 255 * pipe(**arguments_of(pipe, plan, range(len(plan))), output_type="pt").images.float().cpu()

    expected = made("cpu", "float32")
    for dtype, has_tf32 in (("float32", False), ("float32", True), (H, True), (B, True)):
        with torch.backends.cudnn.flags(allow_tf32=has_tf32):
            off = (made(place.device, dtype) - expected).abs()
        of_images = off.flatten(1).mean(dim=1)
        yield {
            "model": "embedded",
            "dtype": "float32, convolutions in TF32" if dtype == "float32" and has_tf32 else dtype,
            "images": len(plan),
            "mean difference of 255": off.mean().item(),
            "that of the median image": of_images.median().item(),
            "of the worst": of_images.max().item(),
            "pixels more than 8 off, %": 100 * (off > 8).float().mean().item(),
        }
    yield {"model": SD2} | same_unet_call(place)


@torch.no_grad()
def same_unet_call(place: Place) -> dict:
    """How far the noise is off that a large UNet predicts in float32 on the GPU, relative to its root mean square."""
    found = []
    for device in (torch.device("cpu"), place.device):
        unet = place.pipeline(SD2, "float32", device).unet
        generator, side = torch.Generator().manual_seed(SEED), unet.config.sample_size
        latents = torch.randn(1, 4, side, side, generator=generator).to(device)
        prompts = torch.randn(1, SD2_TOKENS, unet.config.cross_attention_dim, generator=generator).to(device)
        found.append(unet(latents, 500, encoder_hidden_states=prompts, return_dict=False)[0].cpu())
    expected, noise = found
    return {"dtype": "float32", "relative error of a UNet call": ((noise - expected).norm() / expected.norm()).item()}


# Running


def per_second(amount: int, seconds: list[float]) -> float:
    """By the median."""
    return amount / spread(seconds)["median"]


def ratio(of: list[float], to: list[float]) -> str:
    """Median and range over the rounds."""
    found = spread(ratios_by_round(of, to))
    return f"{found['median']:.3f} ({found['min']:.3f} to {found['max']:.3f})"


PARTS = {
    "sd2": Part(of_stable_diffusion_2, 120),
    "generate": Part(of_generation, 50),
    "sega": Part(of_sega, 40),
    "agreement": Part(of_agreement, 40),
    "sdxl": Part(of_stable_diffusion_xl, 80),
    "processes": Part(of_processes, 60),
    "compile": Part(of_compiler, 120),
}
"""In order of importance."""
PartNames = Annotated[
    list[str], cyclopts.Parameter(choices=PARTS, negative=(), help="A part to run; may be repeated. All by default.")
]
app = cyclopts.App(version_flags=())


@app.default
def main(
    *, only: PartNames | None = None, budget: PositiveFloat = 480, toy: bool = False, results: Path = OUTPUT
) -> None:
    """Run the parts, and print and write their results.

    Args:
        budget: Seconds for all of it.
        toy: Run small models on the CPU.
        results: Folder of the results.
    """
    if not toy and not torch.accelerator.is_available():
        print("there is no accelerator here: run this on a machine with one, or with --toy on the CPU", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the part that runs is stopped, too
    started, run = time.monotonic(), described(toy, budget)
    parts = {name: PARTS[name] for name in PARTS if name in (only or PARTS)}
    with tempfile.TemporaryDirectory() as folder:
        for name, record in run_parts(parts, (Place(Path(folder), toy),), budget):
            run["parts"][name] = record
            run["seconds"] = round(time.monotonic() - started, 1)
            keep(results, run)
            if "seconds" in record:
                print(table_of(name, record), end="\n\n", flush=True)


def described(toy: bool, budget: float) -> dict:
    """What a run is, beside its results."""
    is_cuda = torch.cuda.is_available() and not toy
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "device": torch.cuda.get_device_name() if is_cuda else "the CPU",
        "toy": toy,
        "seed": SEED,
        "budget": budget,
        "cuda": torch.version.cuda if is_cuda else None,
        "environment": environment(),
        "parts": {},
    }


def keep(folder: Path, run: dict) -> None:
    """Write a run as it is so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    machine = run["environment"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    head = [
        f"# On {run['device']}" + (", at toy size" if run["toy"] else ""),
        f"`{run['command']}`, {run['seconds']:.0f} s in all; seed {run['seed']}. CUDA {run['cuda']},"
        f" {machine['processor']}, {machine['cores']} cores; Python {machine['python']}, {packages}.",
    ]
    text = "\n\n".join([*head, *(table_of(name, record) for name, record in run["parts"].items())])
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")


def table_of(name: str, record: dict) -> str:
    """A part in Markdown."""
    ended = f"{record['ended']}, {record['seconds']:.0f} s." if "seconds" in record else f"{record['ended']}."
    return "\n\n".join([f"## {name}: {record['title']}", ended, rows_table(record["rows"])]).rstrip()


if __name__ == "__main__":
    app()
