"""Training methods: what each adds to the cross-entropy of the ID images; a method is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sona_pipeline.common.registry import Registry

if TYPE_CHECKING:
    from sona_pipeline.training.methods.base import Method

METHODS: Registry[type[Method]] = Registry(
    {
        "oe": "sona_pipeline.training.methods.outlier_exposure:OutlierExposure",
        "energy": "sona_pipeline.training.methods.energy_margin:EnergyMargin",
        "mixoe": "sona_pipeline.training.methods.mixoe:MixOE",
        "mcd": "sona_pipeline.training.methods.mcd:MCD",
        "udg": "sona_pipeline.training.methods.udg:UDG",
        "ascood": "sona_pipeline.training.methods.ascood:ASCOOD",
        "cider": "sona_pipeline.training.methods.cider:CIDER",
        "npos": "sona_pipeline.training.methods.npos:NPOS",
        "vos": "sona_pipeline.training.methods.vos:VOS",
    }
)
