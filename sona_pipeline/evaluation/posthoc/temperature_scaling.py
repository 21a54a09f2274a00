"""Maximum softmax probability at the temperature that fits validation images best (Guo et al. 2017)."""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood

START = 1.5


def fit(known: Known) -> Scorer:
    """Fifty steps of L-BFGS from 1.5, as OpenOOD takes them, which may end before the best temperature is reached."""
    method = pytorch_ood().TemperatureScaling(None).to(known.detector.device)
    torch.nn.init.constant_(method.t, START)
    method.fit_logits(known.validation.logits, known.validation.labels)
    return lambda seen: method.predict_logits(seen.logits)


METHOD = Method(fit, on_validation=True)
