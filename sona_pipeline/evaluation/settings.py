"""Settings of an evaluation: the detectors and test images, and how they are scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True)
class TestImages:
    """What detectors are tested on, and what post-hoc scores are fitted to."""

    __test__ = False  # no test class, whatever pytest takes its name for
    id: str | None = None
    """Labelled ID test images."""
    near: tuple[str, ...] = ()
    """Near-OOD images as NAME=IMAGES; may be repeated."""
    far: tuple[str, ...] = ()
    """Far-OOD images as NAME=IMAGES; may be repeated."""
    shifted: tuple[str, ...] = ()
    """Covariate-shifted ID images as NAME=IMAGES, for full-spectrum results; may be repeated."""
    benchmark: str | None = None
    """All sets of OpenOOD's 'cifar10', 'cifar100', 'imagenet200' or 'imagenet', under ROOT."""
    root: Path | None = None
    """OpenOOD's data folder, with benchmark_imglist in it."""
    full_spectrum: bool = False
    """Of BENCHMARK, also the covariate-shifted sets."""
    leaderboard: bool = False
    """Of BENCHMARK, also write the rows that OpenOOD's leaderboard takes, to OUTPUT/leaderboard."""
    split: str = "test"
    """Split of the test images, of data with several: on the Hub, of shards, or of folders."""
    image_column: str | None = None
    """Column of the images, if it cannot be told."""
    label_column: str | None = None
    """Column of the classes, if it cannot be told."""
    image_root: Path | None = None
    """Folder that the paths of image lists start from."""
    fit: str | None = None
    """Labelled ID training images that post-hoc scores are fitted to."""
    validation: str | None = None
    """Labelled ID images that were not trained on, for the post-hoc scores fitted to such and for SEARCH."""
    validation_ood: str | None = None
    """OOD images for SEARCH, none of which is a test image."""
    validation_split: str = "validation"
    """Split of VALIDATION and VALIDATION_OOD, of data with several."""


@dataclass(frozen=True)
class ScoringSettings:
    """Which detectors are scored, and by what."""

    detector: tuple[str, ...]
    """Folder of a detector or its Hub id, as DIR or NAME=DIR; may be repeated. Those of one name are seeds of one
    method."""
    output: Path
    """Folder for tables, pictures and the scores of every image."""
    score: tuple[str, ...] = ()
    """'energy', 'msp', 'max_logit', 'energy+knn' (of a detector trained with it); a post-hoc score: 'openmax', 'odin',
    'react', 'vra', 'knn', 'dice', 'temperature_scaling', 'mahalanobis', 'mahalanobis_normalized', 'mahalanobis_odin',
    'multi_mahalanobis', 'mds_ensemble', 'rmd', 'gram', 'gradnorm', 'kl_matching', 'vim', 'ash_b', 'ash_s', 'scale',
    'she', 'gen', 'entropy', 'nnguide', 'fdbd', 'nci', 'rankfeat', 'lts', 'adascale_a', 'adascale_l', 'pnml', 'gmm',
    'nac', 'graduncertainty', 'opengan', 'mcd' (of a detector trained by it); or 'all'. May be repeated. The detector's
    own by default."""
    baseline: str | None = None
    """Method that the others are compared with: differences paired by seed, with 95 % intervals by bootstrap."""
    search: bool = False
    """Choose the parameters of post-hoc scores by the AUROC on VALIDATION and VALIDATION_OOD, as in OpenOOD's
    tables."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Images at once."""
    workers: Annotated[int, Ge(0)] = 2
    """Threads that decode images."""
    device: str | None = None
    """'cpu', 'cuda', ... (an accelerator if there is one)."""
