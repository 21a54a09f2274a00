"""What every family is held to: algorithm 2 written apart, step by step and prompt by prompt, and the rows it costs."""

import itertools
import json
import subprocess
from collections.abc import Callable
from contextlib import contextmanager

import torch
from warm_python import fresh_python

STEPS, SCALE, SHARE = 6, 10.0, 0.2
Predict = Callable[[torch.Tensor, torch.Tensor, str], torch.Tensor]
"""The prediction for latents `[1, C, H, W]` at a time step with a text, by a call of the denoiser with one row."""


def regions(psi):
    """The largest and the smallest fifth of |psi| in each channel, by sorting, as masks."""
    flat = psi.abs().flatten(2)
    ranks = flat.argsort(dim=-1, stable=True).argsort(dim=-1)
    count = round(SHARE * flat.shape[-1])
    return (ranks >= flat.shape[-1] - count).view_as(psi), (ranks < count).view_as(psi)


def guided(predict: Predict, latents, t, id_text, ood_text):
    """Equations (2) to (7) with three calls, and the masks."""
    plain = predict(latents, t, "")
    psi_id, psi_ood = predict(latents, t, id_text) - plain, predict(latents, t, ood_text) - plain
    (semantic, nuisance), (ood, _) = regions(psi_id), regions(psi_ood)
    ood = ood & ~nuisance
    return plain + SCALE * (nuisance * psi_id - semantic * psi_id + ood * psi_ood), (semantic, nuisance, ood)


def flow_outlier(predict: Predict, source, noise, sigmas, stop_step, id_text, ood_text, train_steps=1000):
    """An outlier of latents `[1, C, H, W]` by a flow model, and the masks of its steps.

    `sigmas` are those of the full schedule, which ends with 0.
    """
    sigmas = sigmas[-stop_step - 1 :]
    x, masks = (1 - sigmas[0]) * source + sigmas[0] * noise, []
    for now, after in itertools.pairwise(sigmas):
        velocity, found = guided(predict, x, now * train_steps, id_text, ood_text)
        x = x + (after - now) * velocity
        masks.append(found)
    return x, masks


@contextmanager
def rows_of(denoiser):
    """The rows of each call of a denoiser: what comes first, a tensor or a list of rows, by position or name."""
    rows: list[int] = []

    def count(module, arguments, named):
        rows.append(len(arguments[0] if arguments else next(iter(named.values()))))

    handle = denoiser.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def in_fresh_process(folder, side: int):
    """The first pixels of an outlier by a saved pipeline, loaded by diffusers with its code, without this package."""
    code = f"""
import json, sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
image = torch.linspace(0, 1, 3 * {side} ** 2).view(1, 3, {side}, {side})
made = pipe(image, "a cat", "a dog", stop_step=2, num_inference_steps=4, output_type="pt",
            generator=torch.Generator().manual_seed(0)).images
assert "sona_pipeline" not in sys.modules
print(json.dumps(made.flatten()[:50].tolist()))
"""
    done = subprocess.run([fresh_python(), "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.tensor(json.loads(done.stdout.strip().splitlines()[-1]))
