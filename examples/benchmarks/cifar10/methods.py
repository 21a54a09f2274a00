"""Training methods that the table `worth` tries, beside those of the package."""

from sona_pipeline import METHODS

RISING, SOFTER = "rising_exposure", "softer_targets"
OutlierExposure, MixOE = METHODS["oe"], METHODS["mixoe"]


class RisingExposure(OutlierExposure):
    """Outlier exposure whose weight rises from 0 to twice what it is in the mean."""

    def forward(self, step):
        return 2 * step.progress * super().forward(step)


class SofterTargets(MixOE):
    """Outlier exposure whose target keeps the source's label for the share of the steps that it was not noised by."""

    weight = OutlierExposure.weight
    keeps_pairs = True

    def expose(self, exposure):
        return exposure.outliers, 1 - exposure.strengths


METHODS.add(RISING, f"{__name__}:RisingExposure")
METHODS.add(SOFTER, f"{__name__}:SofterTargets")
