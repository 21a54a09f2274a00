"""ODIN (Liang et al. 2018): softmax at a high temperature, of images moved towards the predicted class."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known, temperature: float = 1000.0, noise: float = 0.0014) -> Scorer:
    """The step is on pixels in [0, 1]: what OpenOOD means by dividing it by the standard deviation of the pixels."""
    method = pytorch_ood().ODIN(known.detector, eps=noise, temperature=temperature)
    return lambda seen: method.predict(seen.pixels)


METHOD = Method(fit, {"temperature": (1.0, 10.0, 100.0, 1000.0), "noise": (0.0014, 0.0028)}, needs_images=True)
