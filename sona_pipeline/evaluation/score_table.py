"""Test sets scored image by image, and what the scores say of a detector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch

from sona_pipeline.common.files import digest_of, write_with
from sona_pipeline.common.progress import Track
from sona_pipeline.data.class_names import finder
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.detection.detector import Detector, no_neighbours
from sona_pipeline.detection.scores import FEATURE_SCORES, OWN_SCORES
from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.prepared import PreparedSet, as_seen
from sona_pipeline.evaluation.score_names import score_names

if TYPE_CHECKING:
    from sona_pipeline.evaluation.posthoc import Fitted

IMAGE_COLUMNS = ("group", "set", "key", "label", "predicted", "confidence")
"""Columns of a table of scores that are no scores."""
ScoreTable: TypeAlias = pd.DataFrame
"""One row an image, see `score_images`."""
KEPT_BYTES = 2 << 30
"""Images to fit scores to are decoded once if they take less memory."""


@dataclass(frozen=True)
class TestSets:
    """Images that a detector is judged by.

    Attributes:
        id: labelled test images of the classes that the detector knows.
        near, far: OOD images by the name of their set; labels, if there are any, are not looked at.
        covariate: covariate-shifted ID images by the name of their set: the same classes in another guise, which
            count as ID in full-spectrum detection (Yang et al. 2023).

    Raises:
        ValueError: two sets have one name, one is named "id" or "mean", an OOD set is empty, or an ID or shifted one
            has no labelled images.
    """

    __test__ = False  # pytest takes a name like this for a test case

    id: ImageSet
    near: Mapping[str, ImageSet] = field(default_factory=dict)
    far: Mapping[str, ImageSet] = field(default_factory=dict)
    covariate: Mapping[str, ImageSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*self.near, *self.far, *self.covariate]
        if len(set(names)) < len(names) or {"id", "mean"} & set(names):
            raise ValueError(f"names of test sets have to differ, and not be 'id' or 'mean': {names}")
        for group, name, images in self:
            if not len(images):
                raise ValueError(f"the test set {name!r} is empty: leave it out, or give images")
            if group in ("id", "covariate") and not images.labels:
                raise ValueError(f"the images of {name!r} have no classes: ID and shifted images need them")

    def __iter__(self) -> Iterator[tuple[str, str, ImageSet]]:
        """Group, name and images of every set; the groups are in the order "id", "covariate", "near_ood", "far_ood"."""
        yield "id", "id", self.id
        for group, members in (("covariate", self.covariate), ("near_ood", self.near), ("far_ood", self.far)):
            for name, images in members.items():
                yield group, name, images


def score_images(
    detector: Detector,
    sets: TestSets,
    scores: Sequence[str] = ("energy",),
    *,
    fit_images: ImageSet | None = None,
    validation_images: ImageSet | None = None,
    search_images: ImageSet | None = None,
    skip_unfit: bool = False,
    known: ScoreTable | None = None,
    batch_size: int = 64,
    workers: int = 0,
    title: str = "scores",
) -> ScoreTable:
    """Score every image of the test sets; images are decoded once and pass the network once for all `OWN_SCORES`.

    Args:
        detector: in evaluation mode afterwards.
        sets: what to score.
        scores: names of `scores.OWN_SCORES` (with the detector's temperature) or of `posthoc.POST_HOC`, see
            `score_names`.
        fit_images: labelled ID training images, which post-hoc scores are fitted to.
        validation_images: labelled ID images that were not trained on, which some scores are fitted to instead.
        search_images: OOD images that are no test images. With them, each post-hoc score gets the parameters of the
            highest AUROC on `validation_images` and these; without them, those of `posthoc.Method.defaults`.
        skip_unfit: leave out scores that cannot be fitted to the detector, or are not finite for some image, instead of
            raising ValueError.
        known: table of an earlier call with the same detector and sets; only scores that it lacks are computed, and
            post-hoc scores that were fitted to other images or with another search.
        batch_size: images in a batch.
        workers: threads that decode a batch while the one before is scored; 0 counts as 1.
        title: what the progress bar says.

    Returns:
        A row an image, in the order of the sets: `group` ("id", "covariate", "near_ood" or "far_ood"), `set`, `key`,
        `label` (index in `detector.classes`, by class name; -1 for OOD), `predicted` (another such index), `confidence`
        (softmax probability of it, in [0, 1]), and each score, higher = more OOD. Images that cannot be read have no
        row; `table.attrs["unreadable"]` lists them as dictionaries of `group`, `set`, `key` and `reason`, those of
        `fit_images` under the group "fit". `table.attrs["unfit"]` lists the `score`s left out, with the `reason`.
        `table.attrs["fits"]` has for each post-hoc score its `parameters`, the `validation_auroc` that they were chosen
        by, if there was a search, and what it was fitted to.

    Raises:
        ValueError: no such score, images to fit are missing, the detector does not know a class, `known` is of other
            images, no image of a set can be read, or no score is left.
        OSError: the disk fails.
    """
    scores = score_names(scores)
    fits = _Fits(fit_images, validation_images, search_images)
    if known is not None:
        known = fits.without_others(known, scores)
        scores = [score for score in scores if score not in score_columns(known)]
    check_fits(scores, *fits.sets)
    parts = [(group, name, _numbered(images, group, name, detector.classes)) for group, name, images in sets]
    unreadable: list[dict[str, str]] = []
    if known is not None:
        parts, unreadable = _without_unreadable(parts, known), list(known.attrs.get("unreadable", []))
        if not scores:
            return known
    detector.eval()
    batched = partial(_Batches, detector=detector, batch_size=batch_size, workers=workers)
    found = _fit(scores, detector, fits, batched)
    scorers, unfit = found.scorers, found.unfit
    if unfit and not skip_unfit:
        raise ValueError(f"the score {unfit[0]['score']} cannot be fitted: {unfit[0]['reason']}")
    left_out = {row["score"] for row in unfit}
    scores = [score for score in scores if score not in left_out]
    unreadable += [row for row in found.unreadable if row not in unreadable]
    if known is not None and not scores:
        table = known.copy()
        table.attrs |= {"unreadable": unreadable, "unfit": unfit}
        return table
    table, missing = _tested(parts, batched, scores, scorers, title)
    unreadable += missing
    wrong = _not_finite(table, scores)
    if wrong and (not skip_unfit or (len(wrong) == len(scores) and known is None)):
        raise ValueError(f"the score {wrong[0]['score']} cannot be used: {wrong[0]['reason']}")
    unfit += wrong
    table = table.drop(columns=[row["score"] for row in wrong])
    if known is not None:
        scores, image = [score for score in scores if score in table], ["group", "set", "key"]
        new = table[[*image, *scores]].drop_duplicates(image)  # a list may have an image twice
        table = known.merge(new, on=image, validate="m:1")
    table.attrs |= {"unreadable": unreadable, "unfit": unfit}
    earlier = known.attrs.get("fits", {}) if known is not None else {}
    facts = earlier | {score: scorer.facts | {"images": fits.content} for score, scorer in scorers.items()}
    table.attrs["fits"] = {score: fact for score, fact in facts.items() if score in table}
    return table


def write_scores(path: str | Path, table: ScoreTable) -> None:
    """Write a table of `score_images` as parquet, whole or not at all."""
    write_with(Path(path), lambda partial: table.to_parquet(partial, index=False))


def read_scores(path: str | Path) -> ScoreTable:
    """The table in a file of `write_scores`.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is another parquet file.
    """
    table = pd.read_parquet(path)
    if missing := [column for column in IMAGE_COLUMNS if column not in table.columns]:
        raise ValueError(f"{path} has no columns {missing}: give a file that `write_scores` wrote")
    return table


def results_of(table: ScoreTable, score: str, threshold: float | Sequence[float] | None = None) -> dict:
    """ID accuracy, and the metrics of `ood_metrics` for every near- and far-OOD set and their means, in percent.

    Args:
        table: of `score_images`.
        score: one of its scores.
        threshold: of that score; or one for each predicted class, as `Detector.thresholds` has them.

    Returns:
        `id_accuracy`; of a post-hoc score its `parameters` and, if they were searched, the `validation_auroc` that they
        were chosen by; with a threshold `id_flagged`, the share of ID images above it; `near_ood` and `far_ood`, which
        map set names, and `mean`, to `auroc`, `fpr95`, `aupr_in` and `aupr_out`. Where there are covariate-shifted
        images, `full_spectrum` holds the same with ID and all shifted images together as ID, as in OpenOOD, and
        `accuracy` by name of the shifted set.

    Raises:
        ValueError: the table has no such score.
    """
    if score not in score_columns(table):
        raise ValueError(f"the table has no score {score!r}: it has {score_columns(table)}")
    facts, table = table.attrs.get("fits", {}).get(score, {}), _without_attrs(table)
    id_rows, shifted = table[table["group"] == "id"], table[table["group"] == "covariate"]
    results: dict[str, Any] = {"id_accuracy": _accuracy(id_rows)}
    if facts:
        results |= {name: facts[name] for name in ("parameters", "validation_auroc") if facts.get(name)}
    if threshold is not None:
        limits = threshold if np.ndim(threshold) == 0 else np.asarray(threshold)[id_rows["predicted"]]
        results["id_flagged"] = 100 * float((id_rows[score] > limits).mean())
    results |= _ood_results(table, id_rows, score)
    if len(shifted):
        both = pd.concat([id_rows, shifted])
        results["full_spectrum"] = {
            "id_accuracy": _accuracy(both),
            "accuracy": {name: _accuracy(rows) for name, rows in shifted.groupby("set", sort=False)},
            **_ood_results(table, both, score),
        }
    return results


def score_columns(table: ScoreTable) -> list[str]:
    """Names of the scores in a table."""
    return [column for column in table.columns if column not in IMAGE_COLUMNS]


def by_set(table: ScoreTable, score: str, group: str) -> dict[str, np.ndarray]:
    """The scores `[N]` of each set of a group: "id", "covariate", "near_ood" or "far_ood"."""
    table = _without_attrs(table)
    rows = table[table["group"] == group]
    return {name: part[score].to_numpy() for name, part in rows.groupby("set", sort=False)}


def _without_attrs(table: ScoreTable) -> ScoreTable:
    """The same numbers; pandas copies all that `attrs` hold whenever it takes rows or columns."""
    bare = table.copy(deep=False)
    bare.attrs = {}
    return bare


def content_of(images: ImageSet) -> str:
    """A digest of what a set holds and how its images are brought to size; pixels do not count."""
    resize = [images.resize] if isinstance(images, PreparedSet) else []
    return digest_of([images.keys, images.labels, images.classes, *resize])


def check_fits(
    scores: Sequence[str], fit: ImageSet | None, validation: ImageSet | None, search: ImageSet | None
) -> None:
    """Raise ValueError for scores that cannot be fitted to these sets of `score_images`, or not be searched."""
    post_hoc = [score for score in scores if score not in OWN_SCORES]
    if post_hoc and (fit is None or not fit.labels):
        raise ValueError(
            f"the scores {post_hoc} are fitted to labelled ID training images: give some (`fit_images`, --fit)"
        )
    if search is not None and (validation is None or not validation.labels):
        raise ValueError(
            "a search compares OOD images with labelled ID images that were not trained on: give some"
            " (`validation_images`, --validation)"
        )


class _Fits:
    """The sets that post-hoc scores are fitted to.

    Args:
        fit, validation, search: see `score_images`.
    """

    def __init__(self, fit: ImageSet | None, validation: ImageSet | None, search: ImageSet | None) -> None:
        self.sets = (fit, validation, search)

    def __iter__(self) -> Iterator[tuple[str, str, ImageSet]]:
        """Name, group and images of the sets that there are."""
        for (name, group), images in zip(
            (("fit", "fit"), ("validation", "fit"), ("search", "near_ood")), self.sets, strict=True
        ):
            if images is not None:
                yield name, group, images

    @property
    def content(self) -> dict[str, str]:
        """What each of them holds, as `content_of` has it."""
        return {name: content_of(images) for name, _, images in self}

    def without_others(self, known: ScoreTable, scores: Sequence[str]) -> ScoreTable:
        """A known table without those of the scores that were fitted to other sets than these."""
        if not self.content:
            return known
        facts = known.attrs.get("fits", {})
        others = [
            score
            for score in scores
            if score in known and score not in OWN_SCORES and facts.get(score, {}).get("images") != self.content
        ]
        return known.drop(columns=others)


def _accuracy(rows: ScoreTable) -> float:
    return 100 * float((rows["predicted"] == rows["label"]).mean())


def _ood_results(table: ScoreTable, id_rows: ScoreTable, score: str) -> dict:
    results = {}
    for group in ("near_ood", "far_ood"):
        rows = {name: ood_metrics(id_rows[score], values) for name, values in by_set(table, score, group).items()}
        if rows:
            rows["mean"] = pd.DataFrame(rows.values()).mean().to_dict()
        results[group] = rows
    return results


class _Fitting(NamedTuple):
    """Scores that are fitted, those that cannot be, with the reasons, and the images that could not be read for it."""

    scorers: dict[str, Fitted]
    unfit: list[dict[str, str]]
    unreadable: list[dict[str, str]]


def _fit(scores: Sequence[str], detector: Detector, fits: _Fits, batched: Callable[..., _Batches]) -> _Fitting:
    """Fit those of the scores that are post-hoc to the images "fit" and "validation".

    With images "search", parameters are chosen by them and the images "validation".
    """
    unfit: list[dict[str, str]] = []
    if detector.neighbours is None:
        unfit = [{"score": score, "reason": no_neighbours(score)} for score in scores if score in FEATURE_SCORES]
    scores = [score for score in scores if score not in OWN_SCORES]
    if not scores:
        return _Fitting({}, unfit, [])
    batches = {name: batched(name, _numbered(images, group, name, detector.classes)) for name, group, images in fits}
    from sona_pipeline.evaluation.posthoc import Known, fitted
    from sona_pipeline.evaluation.posthoc.search import Trial, searched

    kept = {name: list(part) if part.bytes < KEPT_BYTES else part for name, part in batches.items()}
    known = Known(detector, kept["fit"], kept.get("validation"))
    trial = Trial(known, kept["search"]) if "search" in kept else None
    scorers: dict[str, Fitted] = {}
    for score in scores:
        try:
            scorers[score] = searched(score, trial) if trial else fitted(score, known)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:  # of linear algebra, for one
            unfit.append({"score": score, "reason": str(error)})
    return _Fitting(scorers, unfit, [row for part in batches.values() for row in part.unreadable("fit")])


def _tested(
    parts: Sequence[tuple[str, str, ImageSet]],
    batched: Callable[..., _Batches],
    scores: list[str],
    scorers: Mapping[str, Fitted],
    title: str,
) -> tuple[ScoreTable, list[dict[str, str]]]:
    """The rows of all images that can be read, and those that cannot."""
    tables, unreadable = [], []
    with Track(title, sum(len(images) for _, _, images in parts)) as track:
        for group, name, images in parts:
            tested = batched(name, images)
            rows = [_scored(tested.detector, i, pixels, scores, scorers) for i, pixels in _counted(tested, track)]
            tables.append(_with_images(pd.concat(rows, ignore_index=True), group, name, images))
            unreadable += tested.unreadable(group)
    return pd.concat(tables, ignore_index=True), unreadable


def _not_finite(table: ScoreTable, scores: Sequence[str]) -> list[dict[str, str]]:
    """The scores that some image has no finite value of, with the first set where this is so as the reason."""
    found = []
    for score in scores:
        is_bad = ~np.isfinite(table[score])
        if is_bad.any():
            name = table["set"][is_bad.idxmax()]
            count = int(is_bad[table["set"] == name].sum())
            found.append({"score": score, "reason": f"{count} images of {name!r} have no finite value; leave it out"})
    return found


def _numbered(images: ImageSet, group: str, name: str, classes: Sequence[str]) -> ImageSet:
    """The images with labels that count in the detector's order, or with -1 where they are OOD."""
    if group in ("near_ood", "far_ood"):
        return replace(images, labels=(-1,) * len(images))
    find = finder({name: i for i, name in enumerate(classes)})
    number = {label: find(images.classes[label]) for label in sorted(set(images.labels))}
    if unknown := [images.classes[label] for label, index in number.items() if index is None]:
        raise ValueError(f"{name!r} has classes {unknown}, which the detector does not know: {list(classes)}")
    labels = tuple(index for label in images.labels if (index := number[label]) is not None)
    return replace(images, labels=labels, classes=tuple(classes))


def _without_unreadable(parts: list[tuple[str, str, ImageSet]], known: ScoreTable) -> list[tuple[str, str, ImageSet]]:
    """The sets without the images that an earlier run could not read; the others have to be those of its table."""
    passed_over = {(row["group"], row["set"], row["key"]) for row in known.attrs.get("unreadable", [])}
    kept = []
    for group, name, images in parts:
        left = [i for i, key in enumerate(images.keys) if (group, name, key) not in passed_over]
        kept.append((group, name, images.take(left)))
    rows = [(group, name, *pair) for group, name, images in kept for pair in zip(images.keys, images.labels)]
    if rows != list(known[["group", "set", "key", "label"]].itertuples(index=False, name=None)):
        raise ValueError("the known scores are of other images, or of other classes: give the table of these very sets")
    return kept


class _Batches:
    """Images of a set batch by batch, decoded by threads ahead of use; can be gone through again and again.

    Iterating gives pixels `[B, 3, S, S]` in [0, 1] and labels `[B]`, and shows its progress, for post-hoc scores.
    """

    def __init__(self, name: str, images: ImageSet, detector: Detector, batch_size: int, workers: int):
        self.name, self.images, self.detector = name, images, detector
        self.batch_size, self.workers = batch_size, max(1, workers)
        self._reasons: dict[int, str] = {}

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        with Track("images to fit scores to", len(self.images)) as track:
            for indices, pixels in _counted(self, track):
                yield pixels, torch.tensor([self.images.labels[i] for i in indices])

    @property
    def bytes(self) -> int:
        """Of all pixels as float32."""
        return 12 * self.detector.image_size**2 * len(self.images)

    def unreadable(self, group: str) -> list[dict[str, str]]:
        """The images that could not be read, and why."""
        keys = self.images.keys
        return [
            {"group": group, "set": self.name, "key": keys[i], "reason": reason}
            for i, reason in sorted(self._reasons.items())
        ]

    def read(self) -> Iterator[tuple[range, list[int], torch.Tensor | None]]:
        """Batches as the indices in it, those that can be read, and the pixels of these, None if there are none."""
        starts = range(0, len(self.images), self.batch_size)
        chunks = [range(start, min(start + self.batch_size, len(self.images))) for start in starts]
        with ThreadPoolExecutor(self.workers) as pool:
            ahead = [pool.submit(self._one, i) for i in chunks[0]]
            for chunk, following in zip_longest(chunks, chunks[1:], fillvalue=range(0)):
                jobs, ahead = ahead, [pool.submit(self._one, i) for i in following]
                read = {i: pixels for i, job in zip(chunk, jobs) if (pixels := job.result()) is not None}
                yield chunk, list(read), torch.stack(list(read.values())).float() / 255 if read else None
        if len(self._reasons) == len(self.images):
            raise ValueError(f"no image of {self.name!r} can be read; the first: {self._reasons[0]}")

    def _one(self, index: int) -> torch.Tensor | None:
        try:
            return as_seen(self.images, index, self.detector)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None):
                raise
            self._reasons[index] = str(error)
            return None


def _counted(batches: _Batches, track: Track) -> Iterator[tuple[list[int], torch.Tensor]]:
    """The batches that have images to read; each is counted when it is done."""
    for chunk, indices, pixels in batches.read():
        if pixels is not None:
            yield indices, pixels
        track.advance(len(chunk))


def _scored(
    detector: Detector, indices: list[int], pixels: torch.Tensor, scores: list[str], scorers: Mapping[str, Fitted]
) -> pd.DataFrame:
    """Prediction, confidence and scores of a batch, which passes the network once for all that need no gradient."""
    from sona_pipeline.evaluation.posthoc.base import Seen

    seen = Seen(detector, pixels)
    confidence, predicted = seen.logits.float().softmax(dim=1).max(dim=1)
    columns = {"index": torch.tensor(indices), "predicted": predicted, "confidence": confidence.cpu().double()}
    for score in scores:
        values = scorers[score](seen) if score in scorers else detector.ood_score(seen.logits, seen.features, score)
        columns[score] = values.cpu().double()
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})


def _with_images(rows: pd.DataFrame, group: str, name: str, images: ImageSet) -> ScoreTable:
    indices = rows.pop("index").tolist()
    keys, labels = [images.keys[i] for i in indices], np.array([images.labels[i] for i in indices], dtype=np.int64)
    columns = {"group": group, "set": name, "key": keys, "label": labels}
    return pd.DataFrame(columns).join(rows)
