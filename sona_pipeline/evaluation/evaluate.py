"""Job: score detectors on test sets, near and far, and report what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sona_pipeline.common.files import digest, digest_of, json_lines, only_run, settle_settings, write_text
from sona_pipeline.common.names import expanded
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.detection.detector import UNCALIBRATED, WITHOUT_NEIGHBOURS, Detector, load_detector, training_record
from sona_pipeline.evaluation.comparison import check_baseline, check_seeds, compare
from sona_pipeline.evaluation.leaderboard import FOLDER as LEADERBOARD, described, write_leaderboard
from sona_pipeline.evaluation.report import Run, stems, write_report
from sona_pipeline.evaluation.score_names import ALL, score_names
from sona_pipeline.evaluation.score_table import (
    ScoreTable,
    TestSets,
    check_fits,
    content_of,
    read_scores,
    results_of,
    score_images,
    write_scores,
)


def evaluate_detectors(
    detectors: Sequence[tuple[str, str | Detector]],
    sets: TestSets,
    output: str | Path,
    scores: Sequence[str] | None = None,
    *,
    baseline: str | None = None,
    leaderboard: str | None = None,
    fit_images: ImageSet | None = None,
    validation_images: ImageSet | None = None,
    search_images: ImageSet | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
) -> pd.DataFrame:
    """Score detectors and write `report.write_report`'s tables and pictures, with mean and spread over seeds.

    The scores of every image land in `output/scores`, a parquet file a detector; another call takes them from there,
    so that a new metric, score or detector costs only what is new. Images that cannot be read are passed over and
    listed in `output/rejects.jsonl`.

    Args:
        detectors: method name and folder, or Hub id, or detector, of each; those of one name are seeds of one method.
        sets: to score.
        output: folder for all of it.
        scores: names of `scores.OWN_SCORES` or of `posthoc.POST_HOC`, see `score_names`; with "all", those that cannot
            be fitted to the detector or are not finite are listed in `output/rejects.jsonl`; by default the detector's
            own.
        baseline: a method that the others are compared with, see `comparison.compare`: `differences.csv`, and a table
            in `results.md`.
        leaderboard: name of an OpenOOD benchmark whose test sets these are: `leaderboard/` then has rows for its
            leaderboard.
        fit_images: labelled ID training images, which post-hoc scores are fitted to.
        validation_images: labelled ID images that were not trained on, for the few that are fitted to such.
        search_images: OOD images that are no test images; with them, the parameters of post-hoc scores are those of
            the highest AUROC on `validation_images` and these, and the results say which.
        batch_size: images in a batch.
        workers: threads that decode images.
        device: where the networks run; an accelerator by default, if there is one.

    Returns:
        `report.summary` of all detectors.

    Raises:
        FileNotFoundError: there is no such detector.
        ValueError: a score or class is unknown, the folder holds scores of other detectors or images, or a method has
            not as many detectors as the baseline, or of other seeds.
        BlockingIOError: another run is writing to `output`.
    """
    output = expanded(output)
    is_all = ALL in (scores or ())
    scores = score_names(scores or ())
    check_fits(scores, fit_images, validation_images, search_images)
    if bad := [name for name, _ in detectors if not name or "/" in name or name.startswith(".")]:
        raise ValueError(f"{bad[0]!r} cannot be the name of a method, since files are named by it: choose another one")
    if baseline is not None:
        check_baseline([name for name, _ in detectors], baseline)
        check_seeds([(name, _seed_of(one)) for name, one in detectors], baseline)
    fits = {"fit_images": fit_images, "validation_images": validation_images, "search_images": search_images}
    loaded = [(name, one if isinstance(one, Detector) else load_detector(one, device)) for name, one in detectors]
    paths = [output / "scores" / f"{stem}.parquet" for stem in stems([name for name, _ in detectors])]
    runs: list[Run] = []
    tables: dict[str, list[ScoreTable]] = {}
    rejects: list[dict] = []
    with only_run(output):
        for path, (method, detector) in zip(paths, loaded):
            wanted = scores or [detector.score]
            table = _scores(
                path, detector, sets, wanted, **fits, skip_unfit=is_all, batch_size=batch_size, workers=workers
            )
            thresholds = {detector.score: detector.thresholds}
            there = [score for score in wanted if score in table.columns]
            runs.append((method, {score: results_of(table, score, thresholds.get(score)) for score in there}))
            tables.setdefault(method, []).append(table)
            rejects += [
                {"detector": path.stem, **row} for key in ("unreadable", "unfit") for row in table.attrs.get(key, [])
            ]
        if rejects:
            write_text(output / "rejects.jsonl", json_lines(rejects))
        else:
            (output / "rejects.jsonl").unlink(missing_ok=True)
        differences = compare(tables, baseline) if baseline is not None else None
        found = write_report(output, runs, {name: some[0] for name, some in tables.items()}, differences)
        if leaderboard is not None:
            places = [None if isinstance(place, Detector) else place for _, place in detectors]
            about = {name: described(name, one, place) for (name, one), place in zip(loaded, places)}
            write_leaderboard(found, about, leaderboard, output / LEADERBOARD)
        return found


def _seed_of(detector: str | Detector) -> int | None:
    """The seed that a detector in a folder was trained with, if that is known."""
    return None if isinstance(detector, Detector) else training_record(detector).get("seed")


def _scores(
    path: Path,
    detector: Detector,
    sets: TestSets,
    scores: Sequence[str],
    **options: Any,
) -> ScoreTable:
    """The table of scores in the file, with the `scores` that it lacks computed and added."""
    settings, notes = {"detector": detector_identity(detector), "images": _content(sets)}, path.with_suffix(".json")
    if path.exists():
        settle_settings(notes, settings)
    known = read_scores(path) if path.exists() else None
    table = score_images(detector, sets, scores, known=known, title=f"scores of {path.stem}", **options)
    if known is None:
        notes.unlink(missing_ok=True)  # of a run that was stopped in between
        settle_settings(notes, settings)
    write_scores(path, table)
    return table


NEW_SETTINGS = {
    **{"feature_scale": None, "heads": 1},
    **{"id_rate": None, "class_thresholds": None},
    **WITHOUT_NEIGHBOURS,
}
"""Settings that detectors of version 0.1.0 do not have, and what they are there."""


def detector_identity(detector: Detector) -> str:
    """What results are kept under: follows from the weights and all settings but those that `calibrated` sets."""
    weights = {
        name: digest(value.cpu().contiguous().numpy().tobytes()) for name, value in detector.state_dict().items()
    }
    settings = detector.settings | UNCALIBRATED
    return digest_of([{name: one for name, one in settings.items() if NEW_SETTINGS.get(name, ...) != one}, weights])


def _content(sets: TestSets) -> dict[str, str]:
    """What each set holds, by group and name."""
    return {f"{group}/{name}": content_of(images) for group, name, images in sets}
