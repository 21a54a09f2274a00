"""The most memory that a call takes, beside diffusers' own img2img with guidance by two prompts at the same rows.

    python examples/benchmarks/memory.py
    python examples/benchmarks/memory.py --only SDXL

The denoisers have random weights, the width of their family and, where they are deep, a few of its layers. Both calls
go from latents to latents in a process of their own, on the CPU, in float32. The peak is what Linux tells of the
process. `RESULTS` gets `run.json` and `results.md`.
"""

import json
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import diffusers
import torch

sys.path.append(str(Path(__file__).parent / "speed"))

from bare_denoiser import BareDenoiser
from family_models import LAYOUTS, conditions_of, outliers, pipeline_of
from report import environment, rows_table
from timing import SEED

OUTPUT = Path(__file__).parent / "results" / "memory"
IMAGES, SIDE, STEPS = 2, 32, 2
"""Outliers of a call, the side of the autoencoder's latents, and steps."""
GOAL = 1.05
Families = Annotated[
    list[str], cyclopts.Parameter(choices=tuple(LAYOUTS), negative=(), help="A family; may be repeated. All by default")
]
app = cyclopts.App(version_flags=())


@app.default
def main(*, only: Families | None = None, results: Path = OUTPUT) -> None:
    """Measure families one by one, and write what was found.

    Args:
        results: Folder of the results.
    """
    rows = []
    for name in only or LAYOUTS:
        rows.append(compared(name))
        print(rows[-1], flush=True)
        write(results, rows)


def compared(name: str) -> dict[str, Any]:
    """The peaks of a family, in mebibytes: of the whole process, and above what it had before the call."""
    sona = in_own_process(name, IMAGES, is_sona=True)
    row: dict[str, Any] = {"family": name, "rows of a call": sona["rows"], "weights": sona["weights"]}
    row |= {"SONA": sona["peak"], "SONA, above": sona["peak"] - sona["before"]}
    if LAYOUTS[name].img2img is None:
        return row
    both = 3 * IMAGES // 2, 3 * IMAGES  # two rows of an image in one call, or one after the other
    images = next(n for n in both if in_own_process(name, n, is_sona=False, is_full=False)["rows"] == sona["rows"])
    peer = in_own_process(name, images, is_sona=False)
    row |= {"img2img": peer["peak"], "img2img, above": peer["peak"] - peer["before"]}
    row["ratio"] = round(sona["peak"] / peer["peak"], 3)
    row["ratio, above"] = round(row["SONA, above"] / row["img2img, above"], 3)
    return row | {"is_met": row["ratio"] <= GOAL}


def in_own_process(*arguments: Any, **named: Any) -> dict[str, int]:
    """`peak` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak, *arguments, **named).result()


def peak(name: str, images: int, is_sona: bool, is_full: bool = True) -> dict[str, int]:
    """Rows of a call of the denoiser, and mebibytes: the weights, the process before the call, and its peak."""
    pipe = pipeline_of(name, is_full)
    work = outliers(pipe, name, images, SIDE, STEPS) if is_sona else img2img(pipe, name, images)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = memory("VmRSS")
    bare = BareDenoiser(pipe.denoiser, work)
    weights = sum(one.nbytes for one in pipe.denoiser.parameters()) >> 20
    rows = bare.rows // len(bare.calls)
    highest = max(before, memory("VmHWM"))  # Linux's counts are a page or more apart
    return {"rows": rows, "weights": weights, "before": before, "peak": highest}


def memory(name: str) -> int:
    """What Linux tells of this process by a name, in mebibytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) >> 10


def img2img(pipe: Any, name: str, images: int) -> Any:
    """A call of diffusers' img2img with the same parts, all steps for all images."""
    layout, generator = LAYOUTS[name], torch.Generator().manual_seed(SEED)
    other = getattr(diffusers, layout.img2img or "")(**pipe.components)
    other.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {layout.guidance[0]: layout.guidance[1]}
    for prefix in ("", "negative_"):
        for key, value in conditions_of(pipe, name, generator).items():
            given[prefix + key] = value.expand(images, *value.shape[1:])
    if layout.family == "z_image":  # takes prompts as a list, without padding
        del given["prompt_embeds_mask"], given["negative_prompt_embeds_mask"]
        given |= {key: list(value) for key, value in given.items() if key.endswith("prompt_embeds")}
    latents = torch.randn(images, pipe.latent_channels, SIDE, SIDE, generator=generator)
    given |= {"image": latents, "strength": 1.0, "num_inference_steps": STEPS, "output_type": "latent"}
    return lambda: other(**given, height=8 * SIDE, width=8 * SIDE)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table, and what it was measured with."""
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "examples/benchmarks/memory.py", *sys.argv[1:]])
    run = {"command": command, "seed": SEED, "environment": environment(), "rows": rows}
    (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    machine = run["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    text = f"""# Memory of a call beside img2img

`{command}`; seed {SEED}; {machine["processor"]}, {machine["threads"]} threads; Python {machine["python"]}, {versions}.

Mebibytes. "Above" leaves out what the process had before the call. Goal of the ratio: at most {GOAL}.

{rows_table(rows)}
"""
    (folder / "results.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app()
