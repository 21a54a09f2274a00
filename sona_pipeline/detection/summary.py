"""Whether a detector in use still flags what its calibration promises: shares by class and by day."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from scipy.special import betaincinv  # type: ignore[import-untyped]

from sona_pipeline.detection.detector import Detection, Detector
from sona_pipeline.detection.scoring import Verdict
from sona_pipeline.detection.thresholds import false_alarms_of

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """How many of some images were flagged as OOD.

    Attributes:
        images: how many there are, 1 or more.
        flagged: how many of them were flagged.
    """

    images: int
    flagged: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.flagged / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Clopper and Pearson (1934), which holds the true share at least as often."""
        k, n, tail = self.flagged, self.images, (1 - CONFIDENCE) / 2
        low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
        return low, float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0

    def excludes(self, promised: float | None) -> bool:
        """Whether a promised share lies outside of the interval."""
        low, high = self.interval
        return promised is not None and not low <= promised <= high


@dataclass(frozen=True)
class Summary:
    """How many images were flagged, against what was promised.

    Attributes:
        promised: share of ID images that the threshold was chosen to flag; None if the detector does not say.
        own: classes with a threshold of their own, for each of which that was promised.
        unreadable: images that could not be read, and count nowhere else.
        all: of all images.
        by_class: by predicted class.
        by_day: by the day that a file was last changed, in local time, as YYYY-MM-DD.
    """

    promised: float | None
    own: frozenset[str]
    unreadable: int
    all: Share
    by_class: Mapping[str, Share]
    by_day: Mapping[str, Share]

    def findings(self) -> list[str]:
        """What it comes to, in sentences: of all images, and of each class and day that is not as promised."""
        if self.promised is None:
            return [
                f"It flags {_percent(self.all)}. What share of ID images was to be flagged, the detector does not say:"
                " `sona calibrate` gives it a threshold that does."
            ]
        promised = f"{100 * self.promised:.3g} % were promised"
        seen = "the data have changed" if self.all.excludes(self.promised) else "no change is seen"
        lines = [f"It flags {_percent(self.all)}, {promised}: {seen}."]
        for day, share in self.by_day.items():
            if share.excludes(self.promised):
                lines.append(f"It flags {_percent(share)} of {day}, {promised}: the data have changed.")
        own = "a threshold of its own (`sona calibrate --per-class`) serves this class better"
        why = f"over all classes: the data have changed, or {own}"
        for name, share in self.by_class.items():
            if share.excludes(self.promised):
                told = ": the data have changed" if name in self.own else f" {why}"
                lines.append(f"It flags {_percent(share)} that it takes for {name!r}, {promised}{told}.")
        return lines

    def as_row(self) -> dict[str, Any]:
        """The same for JSON; shares and intervals are in [0, 1]."""

        def row(share: Share) -> dict[str, Any]:
            counts = {"images": share.images, "flagged": share.flagged, "share": share.share}
            return counts | {"interval": list(share.interval), "as_promised": self._as_promised(share)}

        return {
            "promised": self.promised,
            "unreadable": self.unreadable,
            **row(self.all),
            "by_class": {name: row(share) for name, share in self.by_class.items()},
            "by_day": {day: row(share) for day, share in self.by_day.items()},
            "findings": self.findings(),
        }

    def table(self) -> Table:
        """The same for the console."""
        table = Table("", "images", "flagged", "95 % interval", "promised")
        parts = {"all": {"all": self.all}, "class": self.by_class, "day": self.by_day}
        promised = "?" if self.promised is None else f"{100 * self.promised:.3g} %"
        for kind, shares in parts.items():
            for name, share in shares.items():
                low, high = (f"{100 * value:.1f}" for value in share.interval)
                mark = "[yellow]{}[/]" if self._as_promised(share) is False else "{}"
                flagged, between = mark.format(f"{100 * share.share:.1f} %"), f"{low} to {high} %"
                title = "all" if kind == "all" else f"{kind} {escape(name)}"
                table.add_row(title, str(share.images), flagged, between, promised)
            table.add_section()
        return table

    def _as_promised(self, share: Share) -> bool | None:
        return None if self.promised is None else not share.excludes(self.promised)


def check_calibrated(detector: Detector) -> None:
    """Raise ValueError if a detector has no threshold, and so flags nothing."""
    if detector.threshold is None:
        raise ValueError("the detector has no threshold, and so flags nothing: give it one by `sona calibrate`")


def summary_of(found: Sequence[Verdict], detector: Detector) -> Summary:
    """The summary of what a detector said of image files.

    Args:
        found: of `scoring.verdicts`; one file at least could be read.
        detector: that said it.

    Raises:
        ValueError: it has no threshold.
    """
    check_calibrated(detector)
    read = [(path, said) for path, said in found if isinstance(said, Detection)]
    by_class = _shares(read, lambda path, said: said.label)
    promised = None if detector.id_rate is None else false_alarms_of(detector.id_rate)
    own = [] if detector.class_thresholds is None else zip(detector.classes, detector.class_thresholds)
    return Summary(
        promised,
        frozenset(name for name, limit in own if limit is not None),
        len(found) - len(read),
        _shares(read, lambda path, said: "")[""],
        {name: by_class[name] for name in detector.classes if name in by_class},
        dict(sorted(_shares(read, lambda path, said: _day(path)).items())),
    )


def _shares(read: Sequence[tuple[Path, Detection]], kind_of: Callable[[Path, Detection], str]) -> dict[str, Share]:
    flags: dict[str, list[bool]] = defaultdict(list)
    for path, said in read:
        flags[kind_of(path, said)].append(bool(said.is_ood))
    return {kind: Share(len(some), sum(some)) for kind, some in flags.items()}


def _day(path: Path) -> str:
    """The day that a file was last changed; "unknown" if it has gone since it was read."""
    try:
        return datetime.fromtimestamp(os.path.getmtime(path)).date().isoformat()
    except OSError:
        return "unknown"


def _percent(share: Share) -> str:
    low, high = share.interval
    return f"{100 * share.share:.3g} % ({100 * low:.3g} to {100 * high:.3g}) of {share.images} images"
