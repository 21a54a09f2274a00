"""Job: the whole way from labelled images to two detectors, with and without outliers, and a report on both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sona_pipeline import __version__
from sona_pipeline.common.files import settle_settings, versions
from sona_pipeline.common.names import expanded
from sona_pipeline.data.outlier_set import OutlierPairs, open_outlier_set
from sona_pipeline.detection.detector import Detector
from sona_pipeline.evaluation.score_table import content_of
from sona_pipeline.fitting.both import FOLDERS, TRAINED, Judged, judge_both, train_both
from sona_pipeline.fitting.check_classes import Checks, check_classes, held_out_classes
from sona_pipeline.fitting.scores import Choice, give_score
from sona_pipeline.fitting.sources import FitSources
from sona_pipeline.generation.checkpoint import identity
from sona_pipeline.generation.generate import generate_outliers
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.training.start import digest_of_weights

RECORD, GENERATED, CHECKS = "fit.json", "generated", "checks"
"""In the folder of a run: its settings, its outliers, and what came of the classes that were held out."""
UNNAMED = "unnamed"
"""What the settings of a run say of a score that is left to the classes that are held out."""


@dataclass(frozen=True)
class Fitted:
    """What came of a run.

    Attributes:
        output: its folder.
        sources: what it started from.
        pairs: training images and their outliers.
        judged: both detectors on the test images, and the classifier that they start from, if there is one.
        checks: both detectors on classes that were held out, if any were.
    """

    output: Path
    sources: FitSources
    pairs: OutlierPairs
    judged: Judged
    checks: Checks | None


def fit_detector(
    sources: FitSources, pipe: SONAMixin, output: str | Path, *, check_classes: int = 0, command: str = ""
) -> Fitted:
    """Make outliers, train a detector with them and one without, evaluate both, and write `output/report.html`.

    Outliers land in `output/generated` (see `generate_outliers`), the detectors in `detector` and `baseline` (see
    `train_detector`), a classifier that both start from in `original`, with a threshold, tables in `results` (see
    `evaluate_detectors`), and the same of each class that was held out in `checks`. A run that was stopped goes on
    where it was.

    Args:
        sources: images, and how outliers and detectors are made.
        pipe: a loaded pipeline.
        output: folder for all of it.
        check_classes: how many classes are held out in turn, see `check_classes.check_classes`.
        command: that repeats the run, for the report.

    Raises:
        ValueError: the folder was made from other images or with other settings; or what the single jobs raise.
    """
    output = expanded(output)
    check_folder(sources, pipe, output)
    settle_settings(output / RECORD, record_of(sources, pipe), {"versions": versions()})
    train, writing = sources.train, sources.writing
    made = generate_outliers(
        train, pipe, output / GENERATED, sources.generation, writing, id_names=sources.id_names or None
    )
    pairs = open_outlier_set(made, train)
    checks = _checked(sources, output, check_classes) if check_classes else None
    detectors = _trained(sources, pairs, output, checks.choice if checks else None)
    judged = judge_both(detectors, sources.sets, output / "results", is_compared=True)
    fitted = Fitted(output, sources, pairs, judged, checks)
    from sona_pipeline.fitting.report import write_report

    write_report(fitted, output / "report.html", command)
    return fitted


def _checked(sources: FitSources, output: Path, count: int) -> Checks:
    names: Sequence[str] = held_out_classes(sources.train.classes, count, sources.training.seed)
    return check_classes(names, sources, output / GENERATED, output / CHECKS)


def _trained(sources: FitSources, pairs: OutlierPairs, output: Path, choice: Choice | None) -> tuple[Detector, ...]:
    """The detectors, with the score that was chosen; those of a run with other classes held out are given it."""
    settings, validation, running = sources.training, sources.validation, sources.running
    if choice:
        settings = replace(settings, score=choice.score)
    if sources.chooses_score:
        for name in TRAINED:
            give_score(output / FOLDERS[name], pairs.images, validation, settings, "cpu" if running.cpu else None)
    return train_both(pairs, validation, output, settings, running, classifier=sources.classifier)


def check_folder(sources: FitSources, pipe: SONAMixin, output: Path) -> None:
    """Raise ValueError if the folder holds a run of other images or settings, or what is no run; nothing is written."""
    if (output / RECORD).exists():
        settle_settings(output / RECORD, record_of(sources, pipe))
    elif there := [name for name in (GENERATED, *FOLDERS.values()) if (output / name).exists()]:
        raise ValueError(f"{output / there[0]} was not made by this command: choose another folder")


def record_of(sources: FitSources, pipe: SONAMixin) -> dict:
    """All that the results of a run depend on."""
    images = {f"{name} images": content_of(some) for name, some in sources.parts.items()}
    tested = {f"{group} {name}": content_of(some) for group, name, some in sources.sets if group != "id"}
    made = asdict(sources.generation) | {"reconstructions": sources.writing.reconstructions}
    trained = asdict(sources.training) | ({"score": UNNAMED} if sources.chooses_score else {})
    return {
        "version": __version__,
        **identity(pipe),
        "classifier": digest_of_weights(sources.classifier) if sources.classifier else None,
        **images,
        **tested,
        **{f"generate {name}": value for name, value in made.items()},
        **{f"train {name}": value for name, value in trained.items()},
    }
