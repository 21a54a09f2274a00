"""What came of a run, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sona_pipeline.evaluation.score_table import ScoreTable

if TYPE_CHECKING:
    from sona_pipeline.fitting.both import Judged
    from sona_pipeline.fitting.check_classes import Checks
    from sona_pipeline.fitting.job import Fitted
    from sona_pipeline.fitting.scores import Choice

MOST_NAMES = 4
"""Names that a sentence has at most."""
OTHERS = ("the plain classifier", "the classifier as it was")
"""The detectors without outliers, in the order of `FOLDERS`."""
VERDICTS = {
    "better": "Outliers help here",
    "worse": "Outliers do harm here",
    "level": "Whether outliers help cannot be told from these",
}

ON_SETS = {"better": "help with", "worse": "do harm with", "level": "make no difference that can be told with"}
NOTHING = "Nothing was there to tell what it flags of others"


def headline(fitted: Fitted) -> str:
    """The verdict in one sentence: what is flagged of the user's own images, and of others."""
    own = percent(fitted.judged.flagged("id")[0])
    if (found := _of_others(fitted)) is None:
        return f"The detector flags {own} of your own images as never seen. {NOTHING}."
    what, flagged = found
    return (
        f"The detector flags {own} of your own images as never seen; of {what} it flags {percent(flagged[0])},"
        f" {_others(flagged)}."
    )


def _others(shares: Sequence[float]) -> str:
    """Shares of all detectors but the first, in words."""
    return ", ".join(f"{name} {percent(share)}" for name, share in zip(OTHERS, shares[1:]))


def _of_others(fitted: Fitted) -> tuple[str, list[float]] | None:
    """Images that are most like those that were never seen, in words, and the share that each detector flags."""
    if fitted.checks:
        return "classes it never saw", mean_flagged(fitted.checks)
    for group, what in (("near_ood", "near-OOD images"), ("far_ood", "far-OOD images")):
        if fitted.judged.has(group):
            return f"your {what}", fitted.judged.flagged(group)
    return None


def mean_flagged(checks: Checks) -> list[float]:
    """Share of a held-out class that each detector flags, the mean of the classes, in percent."""
    return np.mean([fold.flagged("near_ood") for fold in checks.folds.values()], axis=0).tolist()


def sentences(fitted: Fitted) -> list[str]:
    """What else there is to say: accuracy, false alarms, and each kind of unknown images."""
    judged = fitted.judged
    right, alarms = [*map(accuracy, judged.tables)], judged.flagged("id")
    aim = 100 * (1 - (fitted.sources.training.id_rate or 1))
    said = [
        f"It names {percent(right[0])} of your test images rightly, {_others(right)}. False alarms among them:"
        f" {_others(alarms)}; all thresholds were set to flag {percent(aim)} of your validation images."
    ]
    if fitted.checks:
        said += _of_checks(fitted.checks)
        said += _of_choice(fitted.checks.choice) if fitted.checks.choice else []
    for group, what in (("near_ood", "near-OOD images"), ("far_ood", "far-OOD images")):
        if judged.has(group):
            flagged = judged.flagged(group)
            said.append(
                f"Of your {what} ({listed(judged.names(group))}) it flags {percent(flagged[0])},"
                f" {_others(flagged)}.{_of_sets(judged, group)}"
            )
    if _of_others(fitted) is None:
        said.append("Give images of other things (--near, --far), or hold classes out (--check-classes), to see more.")
    return said


def _of_checks(checks: Checks) -> list[str]:
    is_mean = checks.differences["held_out"] == ""
    rows, by_class = checks.differences[is_mean].set_index("metric"), checks.differences[~is_mean]
    auroc, fpr, by_class = rows.loc["auroc"], rows.loc["fpr95"], by_class[by_class["metric"] == "auroc"]
    return [
        f"Without OOD images, this was asked by holding classes out in turn ({listed(list(checks.folds))}): detectors"
        " with and without outliers were trained anew on the others. "
        f"{VERDICTS[auroc['verdict']]}: with outliers the AUROC is {auroc['difference']:+.1f} points (95 % interval"
        f" {auroc['low']:+.1f} to {auroc['high']:+.1f}), and FPR@95 {fpr['difference']:+.1f} ({fpr['low']:+.1f} to"
        f" {fpr['high']:+.1f}; less is better).{_sorted(by_class['held_out'], by_class['verdict'])}"
        + (" Of so few classes the interval says little about others." if len(checks.folds) < 10 else "")
    ]


def _of_choice(choice: Choice) -> list[str]:
    return [
        f"These classes also chose the score, {choice.score}: of the detectors with outliers, energy+knn has a mean"
        f" AUROC of {choice.auroc['energy+knn']:.1f} and energy of {choice.auroc['energy']:.1f} (difference"
        f" {choice.difference:+.1f}, 95 % interval {choice.low:+.1f} to {choice.high:+.1f}, which has to be above 0 for"
        " energy+knn), and for having chosen, what is told of them is slightly optimistic."
    ]


def _of_sets(judged: Judged, group: str) -> str:
    """On which sets of a group outliers help, and on which they do harm, by the AUROC."""
    if judged.differences is None:
        return ""
    rows = judged.differences
    rows = rows[(rows["group"] == group) & (rows["metric"] == "auroc") & (rows["set"] != "mean")]
    return _sorted(rows["set"], rows["verdict"])


def _sorted(names: pd.Series, verdicts: pd.Series) -> str:
    """A sentence on what outliers help with, and what they do harm with."""
    by_verdict = {verdict: list(some) for verdict, some in names.groupby(verdicts)}
    parts = [f"{words} {listed(by_verdict[verdict])}" for verdict, words in ON_SETS.items() if verdict in by_verdict]
    return f" By AUROC, outliers {'; '.join(parts)}." if parts else ""


def accuracy(table: ScoreTable) -> float:
    """Share of the ID images that are named rightly, in percent."""
    rows = table[table["group"] == "id"]
    return 100 * float((rows["predicted"] == rows["label"]).mean())


def percent(value: float) -> str:
    """A share in words: with a decimal below 10 %."""
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %".replace(".0 %", " %")


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
