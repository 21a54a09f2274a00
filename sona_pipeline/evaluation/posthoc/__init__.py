"""Post-hoc scores on our detectors: the same network, another score. A score is one file and one line here.

Their parameters are the defaults of OpenOOD's configurations, and a search tries what OpenOOD tries. What differs is
said in the file of the score. OpenOOD has no `mahalanobis_normalized`, `mahalanobis_odin`, `multi_mahalanobis`,
`entropy`, `lts`, `pnml`, `nac` and `graduncertainty`; `gram` is that of its authors' code, and `ash_s` OpenOOD's code
but not its choice. Several are computed by pytorch-ood (Kirchheim et al. 2022), which comes with
`pip install "sona-pipeline[baselines]"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sona_pipeline.evaluation.posthoc import (
    adascale,
    ash,
    dice,
    entropy,
    fdbd,
    gen,
    gmm,
    gradnorm,
    graduncertainty,
    gram,
    kl_matching,
    knn,
    lts,
    mahalanobis,
    mcd,
    mds_ensemble,
    multi_mahalanobis,
    nac,
    nci,
    nnguide,
    odin,
    opengan,
    openmax,
    pnml,
    rankfeat,
    react,
    rmd,
    scale,
    she,
    temperature_scaling,
    vim,
    vra,
)
from sona_pipeline.evaluation.posthoc.base import Batches, Known, Method, Scorer, Seen

__all__ = ["POST_HOC", "Batches", "Fitted", "Known", "Method", "Scorer", "Seen", "fitted"]

POST_HOC: dict[str, Method] = {
    "openmax": openmax.METHOD,
    "odin": odin.METHOD,
    "react": react.METHOD,
    "vra": vra.METHOD,
    "knn": knn.METHOD,
    "dice": dice.METHOD,
    "temperature_scaling": temperature_scaling.METHOD,
    "mahalanobis": mahalanobis.METHOD,
    "mahalanobis_normalized": mahalanobis.NORMALIZED,
    "mahalanobis_odin": mahalanobis.ODIN,
    "multi_mahalanobis": multi_mahalanobis.METHOD,
    "mds_ensemble": mds_ensemble.METHOD,
    "rmd": rmd.METHOD,
    "gram": gram.METHOD,
    "gradnorm": gradnorm.METHOD,
    "kl_matching": kl_matching.METHOD,
    "vim": vim.METHOD,
    "ash_b": ash.B,
    "ash_s": ash.S,
    "scale": scale.METHOD,
    "she": she.METHOD,
    "gen": gen.METHOD,
    "entropy": entropy.METHOD,
    "nnguide": nnguide.METHOD,
    "fdbd": fdbd.METHOD,
    "nci": nci.METHOD,
    "rankfeat": rankfeat.METHOD,
    "lts": lts.METHOD,
    "adascale_a": adascale.A,
    "adascale_l": adascale.L,
    "pnml": pnml.METHOD,
    "gmm": gmm.METHOD,
    "nac": nac.METHOD,
    "graduncertainty": graduncertainty.METHOD,
    "opengan": opengan.METHOD,
    "mcd": mcd.METHOD,
}
"""The post-hoc scores by name."""


@dataclass(frozen=True)
class Fitted:
    """A score that is fitted to a detector.

    Attributes:
        scorer: from images to scores.
        parameters: that it was fitted with.
        validation_auroc: in percent, of a search.
    """

    scorer: Scorer
    parameters: Mapping[str, Any]
    validation_auroc: float | None = None

    @torch.no_grad()
    def __call__(self, seen: Seen) -> torch.Tensor:
        """Scores `[B]` of a batch, higher = more OOD."""
        return self.scorer(seen).detach()

    @property
    def facts(self) -> dict[str, Any]:
        """Its parameters and, of a search, the AUROC that they were chosen by, as results have them."""
        searched = {} if self.validation_auroc is None else {"validation_auroc": self.validation_auroc}
        return {"parameters": dict(self.parameters), **searched}


def fitted(name: str, known: Known, **parameters: Any) -> Fitted:
    """The score `name` of `POST_HOC`, fitted to ID images; the same every time.

    Args:
        name: of `POST_HOC`.
        known: detector and images; methods `on_validation` are fitted to its validation images.
        parameters: others than the defaults of the method.

    Raises:
        ValueError: there is no such method, pytorch-ood is missing, a class has no image, or none that the network gets
            right where the method needs one, or the network has no such layers as the method looks at.
    """
    if name not in POST_HOC:
        raise ValueError(f"no post-hoc method named {name!r}: choose one of {sorted(POST_HOC)}")
    method = POST_HOC[name]
    parameters = method.defaults | parameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Fitted(method.fit(known, **parameters), parameters)
