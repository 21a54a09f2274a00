"""Our scores, searches and metrics against numbers that OpenOOD's own code gave.

The numbers were made once, on a CPU, by the functions of OpenOOD's postprocessors, of its networks that shape features,
of its parameter search and of its metrics (Jingkang50/OpenOOD, v1.5), without their calls to a GPU, on the network and
the images of `openood_case.py`; those of `openmax` with libmr 0.1.9, those of `knn` and `nnguide` with faiss, and those
of `adascale_a` and `adascale_l` by its functions written out again. There they are confidences, and so have the other
sign.
"""

from collections.abc import Callable

import numpy as np
import openood_case as case
import pytest
import torch

from sona_pipeline.detection.scores import SCORES
from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.posthoc import POST_HOC, Known, Seen, fitted
from sona_pipeline.evaluation.posthoc.search import Trial, searched

SEEN = torch.cat([case.KNOWN, case.UNKNOWN])
EXPECTED = {
    "msp": [
        -0.4766304,
        -0.9997503,
        -0.4707763,
        -0.656444,
        -0.991962,
        -0.7645495,
        -0.8978741,
        -0.9999892,
        -0.9997054,
        -0.9467152,
        -0.7256931,
        -0.9999988,
    ],
    "max_logit": [
        -1.201189,
        -8.213179,
        -0.367836,
        -1.634299,
        -4.28829,
        -1.445343,
        -2.66403,
        -10.841,
        -8.665812,
        -3.544214,
        -2.38424,
        -13.81211,
    ],
    "energy": [
        -1.942203,
        -8.213428,
        -1.121208,
        -2.055217,
        -4.29636,
        -1.713812,
        -2.771755,
        -10.84101,
        -8.666106,
        -3.598971,
        -2.704868,
        -13.81211,
    ],
    "openmax": [
        0.3551572,
        0.9986259,
        0.2292014,
        0.1909845,
        0.04299702,
        0.1068488,
        0.04902198,
        0.9998565,
        0.9990428,
        0.02060891,
        0.1383243,
        0.9999797,
    ],
    "odin": [
        -0.2506388,
        -0.2533136,
        -0.2509233,
        -0.2511159,
        -0.2521197,
        -0.251243,
        -0.2512581,
        -0.2536804,
        -0.2531224,
        -0.2520007,
        -0.2511041,
        -0.2545125,
    ],
    "react": [
        -1.751048,
        -2.960722,
        -1.120922,
        -1.924986,
        -2.746058,
        -1.272939,
        -2.084747,
        -3.111147,
        -2.745472,
        -1.965726,
        -2.700219,
        -2.88911,
    ],
    "vra": [
        -1.751048,
        -2.960722,
        -1.120922,
        -1.839201,
        -2.746058,
        -1.280268,
        -2.084747,
        -3.111147,
        -2.745472,
        -1.965726,
        -2.288467,
        -2.88911,
    ],
    "knn": [
        0.06641185,
        0.07285886,
        0.0698827,
        0.08082615,
        0.0769745,
        0.08592368,
        0.05569423,
        0.0846013,
        0.06967276,
        0.07889578,
        0.09188713,
        0.1793287,
    ],
    "dice": [
        -6.773342,
        -7.495287,
        -6.770605,
        -6.770052,
        -6.789656,
        -6.772059,
        -6.778975,
        -9.23671,
        -7.893878,
        -6.795094,
        -6.770048,
        -12.06572,
    ],
    "temperature_scaling": [
        -0.4317738,
        -0.9909469,
        -0.3860707,
        -0.5300453,
        -0.9291501,
        -0.5966792,
        -0.7324744,
        -0.9985648,
        -0.9916753,
        -0.8201331,
        -0.5753171,
        -0.9997016,
    ],
    "mahalanobis": [
        23.69682,
        27.60287,
        11.13496,
        10.39047,
        16.87482,
        7.570032,
        7.534602,
        33.23227,
        52.3402,
        13.69819,
        11.2018,
        125.8924,
    ],
    "mds_ensemble": [
        16.3484,
        0.4099542,
        0.8268496,
        0.6183551,
        7.322793,
        0.4756204,
        74.11386,
        16.96239,
        4.753365,
        40.36436,
        80.02655,
        14.14812,
    ],
    "rmd": [
        0.1968956,
        -0.5880508,
        -0.1100216,
        -1.017064,
        -2.151766,
        -1.037821,
        -0.005292892,
        -1.313503,
        -0.8382683,
        -0.9957123,
        0.8853531,
        3.802841,
    ],
    "gradnorm": [
        -30.64603,
        -60.05219,
        -13.09945,
        -22.43991,
        -50.99252,
        -28.99025,
        -39.59618,
        -65.51434,
        -70.57762,
        -44.10817,
        -22.29021,
        -76.9964,
    ],
    "kl_matching": [
        0.292942,
        0.3188607,
        0.1452844,
        0.03650845,
        0.2824975,
        0.0439851,
        0.1014717,
        0.3207861,
        0.3186558,
        0.1816197,
        0.05699258,
        0.3208932,
    ],
    "vim": [
        0.6395282,
        -6.460474,
        0.4406905,
        -0.5920225,
        -1.734713,
        -0.1017346,
        -1.671375,
        -8.937311,
        -5.916956,
        -1.659624,
        -1.003486,
        -8.789021,
    ],
    "ash_b": [
        -17.17552,
        -26.04848,
        -1.136501,
        -11.3735,
        -0.1923741,
        -1.24799,
        -23.23246,
        -18.64435,
        -41.49638,
        -24.50228,
        -10.28283,
        -2.868997,
    ],
    "ash_s": [
        -17899.71,
        -14468.08,
        -3994.605,
        -2192.871,
        -4401.766,
        -2878.717,
        -32854.61,
        -14047.91,
        -36871.36,
        -7413.332,
        -2000.811,
        -1352.157,
    ],
    "scale": [
        -1614.473,
        -1145.539,
        -960.2668,
        -332.7291,
        -1166.587,
        -796.5576,
        -1380.157,
        -1451.262,
        -2085.866,
        -982.9005,
        -287.808,
        -738.4332,
    ],
    "she": [
        -4.803727,
        -6.723559,
        -4.412043,
        -3.170445,
        -5.719912,
        -4.729276,
        -5.097089,
        -7.344195,
        -7.75319,
        -5.309004,
        -2.790843,
        -8.744383,
    ],
    "gen": [
        3.077693,
        1.440452,
        3.288606,
        2.99644,
        2.120658,
        3.030786,
        2.760668,
        1.037383,
        1.356296,
        2.522398,
        2.877869,
        0.7049779,
    ],
    "nnguide": [
        -5.340734,
        -22.03692,
        -3.037988,
        -5.478526,
        -11.51469,
        -4.579133,
        -7.553763,
        -28.68147,
        -23.65001,
        -9.657355,
        -7.183392,
        -34.436,
    ],
    "fdbd": [
        -1.262195,
        -2.238284,
        -0.6137749,
        -1.277016,
        -2.004894,
        -1.087616,
        -1.785767,
        -2.352616,
        -1.876849,
        -1.692017,
        -1.645354,
        -1.986343,
    ],
    "nci": [
        -1.881791,
        -7.582405,
        -3.889746,
        -3.979951,
        -6.494496,
        -4.418894,
        -7.186677,
        -7.688756,
        -6.057749,
        -6.411331,
        -5.295669,
        -5.919467,
    ],
    "adascale_a": [
        -1614.473,
        -349.5662,
        -960.2668,
        -332.7291,
        -312.745,
        -208.9239,
        -1380.157,
        -409.485,
        -477.4309,
        -274.8199,
        -287.808,
        -273.932,
    ],
    "adascale_l": [
        -28.29133,
        -67.9266,
        -6.96179,
        -23.7249,
        -38.13991,
        -11.22526,
        -54.94083,
        -91.66949,
        -86.3446,
        -29.89742,
        -35.96493,
        -79.46908,
    ],
    "rankfeat": [
        -2.923685,
        -5.013994,
        -4.806375,
        -5.730323,
        -2.465437,
        -3.132525,
        -4.731109,
        -2.237083,
        -3.713139,
        -5.216679,
        -4.534008,
        -0.6034437,
    ],
}
"""Of six ID and six OOD images. OpenOOD has `ash_s` and runs `ash_b`; `openmax` is the part of the unknown class."""
FOUND = {
    "ash_b": ({"percentile": 90}, 37.4792),
    "ash_s": ({"percentile": 90}, 47.875),
    "scale": ({"percentile": 90}, 49.7917),
    "react": ({"percentile": 85}, 33.7708),
    "vra": ({"percentile_high": 85, "percentile_low": 1}, 33.75),
    "knn": ({"k": 50}, 66.8333),
    "dice": ({"p": 10}, 36.8958),
    "gen": ({"gamma": 0.01, "m": 10}, 23.6042),
    "odin": ({"temperature": 1, "noise": 0.0028}, 25.7708),
    "fdbd": ({"distance_as_normalizer": True}, 27.8542),
    "nci": ({"alpha": 0.0001}, 28.6875),
}
"""What OpenOOD's search chooses by 80 ID and 60 OOD images, and the AUROC."""
METRICS = {
    "auroc": 69.08333333333334,
    "aupr_in": 76.44651383414697,
    "aupr_out": 67.40584688080229,
    "fpr95": 78.33333333333333,
}
"""In percent, of the waves in the last test."""
COMPARED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "knn": torch.square,
    "mahalanobis": lambda scores: scores * 2 * len(case.TRAIN),
    "rmd": lambda scores: scores * len(case.TRAIN),
    "gradnorm": lambda scores: scores * case.CLASSES,
}
"""What makes OpenOOD's figure of ours, where the two put images into one order by figures of different scales: it has
squared distances, covariances for scatter matrices, and a gradient summed over classes."""
FEW = {"k1": 50, "k2": 25}
PARAMETERS = {"nnguide": {"alpha": 1.0}, "vim": {"dim": 6}, "adascale_a": FEW, "adascale_l": FEW}
"""Other than the defaults: all training images, since ours are drawn at random, and fewer dimensions than features, of
which a percent or five would be none."""
OURS_ONLY = {
    *("mahalanobis_normalized", "mahalanobis_odin", "multi_mahalanobis", "entropy", "lts", "pnml", "nac"),
    "graduncertainty",
}
"""Scores that OpenOOD does not have."""
OTHERS = {"gram", "gmm", "opengan", "mcd"}
"""Scores that are another's, or belong to a training, see their files."""


def batches(pixels: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(pixels.split(32), labels.split(32)))


@pytest.fixture(scope="module")
def known() -> Known:
    fit, validation = (batches(part, case.labels(len(part))) for part in (case.TRAIN, case.VALIDATION))
    return Known(case.detector(), fit, validation)


def test_every_score_is_compared_or_named():
    assert {*SCORES, *POST_HOC} == EXPECTED.keys() | OURS_ONLY | OTHERS


@pytest.mark.parametrize("name", EXPECTED)
def test_scores_are_those_of_openood(known, name):
    seen = Seen(known.detector, SEEN)
    scores = SCORES[name](seen.logits, 1.0) if name in SCORES else fitted(name, known, **PARAMETERS.get(name, {}))(seen)
    figures = COMPARED.get(name, torch.clone)(scores).double().numpy()
    np.testing.assert_allclose(figures, EXPECTED[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FOUND)
def test_searches_find_what_openood_finds(known, name):
    unknown = batches(case.OOD_VALIDATION, torch.full((len(case.OOD_VALIDATION),), -1))
    found = searched(name, Trial(known, unknown))
    parameters, auroc = FOUND[name]
    assert found.parameters == parameters
    assert found.validation_auroc == pytest.approx(auroc, abs=1e-3)
    np.testing.assert_allclose(
        found(Seen(known.detector, SEEN)), fitted(name, known, **parameters)(Seen(known.detector, SEEN))
    )


def test_metrics_are_those_of_openood():
    known, unknown = np.sin(np.arange(1, 61) * 1.7), np.sin(np.arange(1, 41) * 2.3) - 0.6
    unknown[::5] = known[:8]
    assert ood_metrics(-known, -unknown) == pytest.approx(METRICS, abs=1e-9)
