"""Job: a repository is checked, laid out and pushed, or laid out only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sona_pipeline.hub import repositories
from sona_pipeline.hub.settings import BlocksPush, DetectorPush, OutlierPush, PipelinePush, PushSettings, SpacePush


def publish(settings: PushSettings) -> str:
    """Check what can be checked at once, lay a repository out, and push it unless it is a dry run.

    Args:
        settings: one of the settings in `LAYOUTS`.

    Returns:
        What was done, in a sentence.

    Raises:
        ValueError: `settings.repo` is no name of a repository, or what is to be laid out cannot be.
        OSError: the folder holds something, or the Hub refuses.
    """
    repo_type, write = LAYOUTS[type(settings)]
    if isinstance(settings, PipelinePush):
        repositories.check_model(settings.model, settings.pointer)
    if isinstance(settings, BlocksPush) and settings.model is not None:
        repositories.check_model(settings.model, pointer=True)
    repositories.check_repo_id(settings.repo)
    folder = settings.output or Path("hub") / settings.repo.partition("/")[2]
    repositories.check_folder(folder)
    if not settings.dry_run:
        repositories.check_access(settings.repo)
    try:
        write(folder, settings)
        if settings.dry_run:
            return f"Laid out, and not pushed: {folder}"
        return f"Pushed: {_push_and_remove(folder, settings.repo, repo_type, settings.private)}"
    finally:
        if settings.output is None:
            with suppress(OSError):  # it holds what this run or others laid out
                folder.parent.rmdir()


def _write_pipeline(folder: Path, it: PipelinePush) -> None:
    repositories.write_pipeline_repository(
        folder, it.repo, it.model, pointer=it.pointer, family=it.family, licence=it.licence, results=it.results
    )


def _write_blocks(folder: Path, it: BlocksPush) -> None:
    repositories.write_blocks_repository(folder, it.repo, it.family, it.model)


def _write_outliers(folder: Path, it: OutlierPush) -> None:
    repositories.write_outlier_repository(
        folder, it.repo, it.folder, near_ood=it.near_ood, id_set=it.id_set, licence=it.licence
    )


def _write_detector(folder: Path, it: DetectorPush) -> None:
    repositories.write_detector_repository(
        folder, it.repo, it.folder, results=it.results, licence=it.licence, onnx=it.onnx
    )


def _write_space(folder: Path, it: SpacePush) -> None:
    repositories.write_space(folder)


LAYOUTS: dict[type[PushSettings], tuple[str, Callable[[Path, Any], None]]] = {
    PipelinePush: ("model", _write_pipeline),
    BlocksPush: ("model", _write_blocks),
    OutlierPush: ("dataset", _write_outliers),
    DetectorPush: ("model", _write_detector),
    SpacePush: ("space", _write_space),
}
"""The kind of repository that settings are of, and what lays it out."""


def _push_and_remove(folder: Path, repo: str, repo_type: str, private: bool) -> str:
    """Push a folder that this run has laid out, and take it away, however that ends."""
    try:
        return repositories.push(folder, repo, repo_type, private)
    finally:
        shutil.rmtree(folder.resolve(), ignore_errors=True)
