"""Planned outliers of the bundled sample, and the arguments that a call of the pipeline takes for them."""

from collections.abc import Sequence

import torch
from timing import SEED

from sona_pipeline import GenerationSettings, Plan, SONAPipeline, fit, image_form, plan_outliers, sample

SETTINGS = GenerationSettings(ood_labels=sample.OOD_LABELS, seed=SEED)


def plan_of(count: int) -> Plan:
    """The outliers of the first `count` ID images of the sample, at most 1,500."""
    return plan_outliers(sample.id_images("train").take(range(count)), SETTINGS)


def arguments_of(pipe: SONAPipeline, plan: Plan, indices: Sequence[int]) -> dict:
    """Images, prompts, stop steps and generators of the outliers at `indices`; generators are new at each call."""
    items = [plan[i] for i in indices]
    size, mode = image_form(pipe, None)
    return {
        "image": [fit(plan.images.image(item.index), size, mode) for item in items],
        "id_prompt": [plan.settings.id_prompt_of(plan.images.label_name(item.index)) for item in items],
        "ood_prompt": [plan.settings.ood_prompt_of(item.ood_label) for item in items],
        "stop_step": [item.stop_step for item in items],
        "num_inference_steps": plan.settings.num_inference_steps,
        "generator": [torch.Generator().manual_seed(item.seed) for item in items],
    }
