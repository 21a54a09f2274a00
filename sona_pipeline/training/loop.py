"""The training loop of a detector: epochs, losses, validation and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sona_pipeline.common.files import json_lines, write_text
from sona_pipeline.common.messages import say, warning
from sona_pipeline.common.progress import Track
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import OutlierPairs
from sona_pipeline.detection.detector import Detector
from sona_pipeline.detection.neighbours import keep_neighbours
from sona_pipeline.detection.scores import FEATURE_SCORES
from sona_pipeline.training.devices import check_shared_memory
from sona_pipeline.training.items import (
    EpochOrder,
    Labelled,
    Pixels,
    Plain,
    TrainingItems,
    TrainingSets,
    collate,
    mixed_seed,
    readable,
)
from sona_pipeline.training.methods import METHODS
from sona_pipeline.training.methods.base import Exposure, Step
from sona_pipeline.training.methods.club import Club, standardized
from sona_pipeline.training.settings import (
    AUGMENTATIONS,
    OPTIMIZERS,
    OUTLIER_AUGMENTATIONS,
    SCHEDULES,
    TrainingSettings,
)
from sona_pipeline.training.start import check_single_images, new_detector
from sona_pipeline.training.state import load_state, save_state

MI_STEPS = 5
"""Steps of q's own optimizer a training step."""
SHARES = (0.75, 0.5, 0.25, 0.0)
"""Of the change of a kept classifier's weights, tried in this order until its accuracy is what was asked for."""
VALIDATION_BATCH = 256
CHECKPOINT = "checkpoint.safetensors"
"""The file in the folder of a detector that a stopped run goes on from."""


class Training:
    """The parts of a training, made ready by accelerate, and the loop over them."""

    def __init__(
        self,
        sets: TrainingSets,
        settings: TrainingSettings,
        accelerator: Accelerator,
        *,
        classifier: Detector | None = None,
        workers: int = 0,
        folder: Path | None = None,
    ):
        self.settings, self.accelerator, self.folder = settings, accelerator, folder
        self.is_kept = classifier is not None
        torch.manual_seed(settings.seed)
        detector = new_detector(sets.images.classes, settings, classifier)
        method = METHODS[settings.method](detector.network, settings)
        self.beta = method.weight if settings.outlier_weight is None else settings.outlier_weight
        self.gamma = mi_weight(settings, sets.outliers)
        self.uses_method = self.beta > 0 and (sets.outliers is not None or not method.needs_outliers)
        self.uses_outliers = self.gamma > 0 or (self.beta > 0 and method.needs_outliers)
        self.views = method.views if self.uses_method else 1
        self.looks_at_all, self.workers = self.uses_method and method.looks_at_all, workers
        if self.looks_at_all and accelerator.num_processes > 1:
            raise ValueError(f"the method {settings.method!r} looks at all images: start it in one process")
        self.sets = sets

        parameters = [*detector.parameters(), *(method.parameters() if self.uses_method else ())]
        optimizer = OPTIMIZERS[settings.optimizer](
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.order = EpochOrder(len(sets.images), settings.seed)
        loader = self._loader(sets, detector)
        self.model, self.optimizer, self.loader = accelerator.prepare(detector, optimizer, loader)
        self.plain_method = method.to(accelerator.device)
        self.method = accelerator.prepare_model(method) if list(method.parameters()) else method
        if self.gamma > 0:
            self.club = Club(detector.network.head.in_features).to(accelerator.device)  # each process has its own
            self.club_optimizer = self.club.optimizer()
        steps = settings.epochs * math.ceil(len(self.loader) / settings.accumulation)
        self.schedule = SCHEDULES[settings.schedule](self.optimizer.optimizer, settings.learning_rate, steps)
        held_out = [Labelled(sets.validation, detector.one)] if sets.validation else []
        self.validation = [DataLoader(one, VALIDATION_BATCH, collate_fn=readable) for one in held_out]
        self.epoch, self.best_accuracy, self.floor = 0, -1.0, -1.0
        self.best: dict[str, torch.Tensor] | None = None
        is_watched = settings.max_accuracy_drop is not None
        self.start = self._weights() if is_watched else None  # a run that goes on is given the same classifier
        self.log: list[dict] = []
        self.rejects: dict[str, str] = {}

    def _loader(self, sets: TrainingSets, detector: Detector) -> DataLoader:
        settings, processes = self.settings, self.accelerator.num_processes
        share, rest = divmod(settings.batch_size, processes * settings.accumulation)
        if rest or not share:
            raise ValueError(
                f"`batch_size` {settings.batch_size} cannot be shared by {processes} processes in"
                f" {settings.accumulation} parts each: make it a multiple of {processes * settings.accumulation}"
            )
        has_rounds = isinstance(sets.outliers, OutlierPairs) and sets.outliers.reconstructions is not None
        if share == 1 and not has_rounds:
            check_single_images(detector)
        kinds = self.views + (sets.outliers is not None) + has_rounds
        most = max(kinds * share, VALIDATION_BATCH * self.looks_at_all)
        check_shared_memory(self.workers, most * 3 * settings.image_size**2)
        steps = AUGMENTATIONS[settings.augmentation](settings.image_size)
        steps += [v2.RandomHorizontalFlip()] if settings.flip else [v2.Identity()]
        more = OUTLIER_AUGMENTATIONS[settings.outlier_augmentation](settings.image_size)
        read = detector.whole if settings.augmentation == "resized_crop" else detector.one
        items = TrainingItems(
            sets.images,
            sets.outliers,
            lambda images: Pixels(images, read, v2.Compose(steps)),
            lambda outliers: Pixels(outliers, read, v2.Compose([*steps, *more])),
            self.views,
        )
        return DataLoader(
            items,
            share,
            sampler=self.order,
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=len(items) > share * processes,
        )

    @property
    def detector(self) -> Detector:
        """What is trained, without what accelerate has wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def run(self, title: str) -> Detector:
        """Train from the first epoch, or from the checkpoint, to the last one; then calibrate."""
        if self.folder and (self.folder / CHECKPOINT).exists():
            self._restore(load_state(self.folder / CHECKPOINT))
        elif self.start is not None:
            self.floor = self._validate(self.detector)[0] - (self.settings.max_accuracy_drop or 0)
        total = self.settings.epochs * len(self.loader)
        with Track(title, total, shown=self.accelerator.is_main_process) as track:
            track.reach(self.epoch * len(self.loader))
            while self.epoch < self.settings.epochs:
                losses = self._train_epoch(track)
                self.epoch += 1
                self._close_epoch(losses, track, title)
        if self.best is not None:
            self.detector.load_state_dict(self.best)
        if self.start is not None:
            self._go_back()
        detector = self.detector.with_settings().eval()  # a copy, without what mixed precision has wrapped around it
        if self.settings.score in FEATURE_SCORES:
            is_shown, sets = self.accelerator.is_main_process, self.sets
            detector = keep_neighbours(detector, sets.images, sets.validation, seed=self.settings.seed, shown=is_shown)
        if self.settings.id_rate is None:
            return detector
        return detector.calibrated(self._validate(detector)[1], self.settings.id_rate)

    def _train_epoch(self, track: Track) -> dict[str, float]:
        """One pass over the ID images; the mean of each loss. It depends on the seed, the epoch and the state alone."""
        self.order.epoch = self.epoch
        torch.manual_seed(mixed_seed(self.settings.seed, self.epoch, self.accelerator.process_index))
        if self.looks_at_all:
            self._show_all()
        self._train_mode()
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(self.loader):
            self._note(batch.pop("rejects"))
            losses = self.step(batch, (self.epoch + number / len(self.loader)) / self.settings.epochs)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
            track.advance()
        means = {name: float(value) / len(self.loader) for name, value in sums.items()}
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"the loss is {means['loss']} in epoch {self.epoch + 1}: lower the learning rate or a loss weight"
            )
        return means

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor]:
        """One step on a batch, or on a part of one with accumulation; its losses."""
        with self.accelerator.accumulate(self.model):
            losses = self._losses(batch, progress)
            self.accelerator.backward(losses["loss"])
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.schedule.step()
        return losses

    def _losses(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor]:
        """The terms of (8) for a batch, and their weighted sum `loss`; one forward pass for everything in it."""
        step, known_logits, known_labels = self._forward(batch, progress)
        losses = {"cross_entropy": F.cross_entropy(known_logits, known_labels)}
        loss = losses["cross_entropy"]
        if self.uses_method and (len(step.sources) or not self.plain_method.skips_without_outliers):
            losses["outliers"] = self.method(step)
            loss = loss + self.beta * losses["outliers"]
        if self.gamma > 0 and len(step.sources) > 1:
            losses["mutual_information"] = self._mutual_information(step)
            loss = loss + self.gamma * losses["mutual_information"]
        return losses | {"loss": loss}

    def _forward(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[Step, torch.Tensor, torch.Tensor]:
        """What the model says of a batch; and logits and labels of all that counts as ID, round trips among it."""
        kinds = [kind for kind in ("image", "view", "reconstruction") if kind in batch]
        parts = [batch[kind].float() / 255 for kind in kinds]
        sources, outliers, share = self._exposed(batch, parts[0], progress)
        logits, features = self.model(torch.cat([*parts, outliers]), with_features=True)
        known, labels = len(logits) - len(outliers), batch["label"]
        count = self.views * len(labels)
        step = Step(
            labels=labels.repeat(self.views),
            logits=logits[:count],
            features=features[:count],
            outlier_logits=logits[known:],
            outlier_features=features[known:],
            sources=sources,
            id_share=share,
            progress=progress,
            places=batch["place"],
            outlier_places=batch["outlier_place"][sources] if "outlier_place" in batch else sources,
        )
        known_logits = logits[:known]
        if self.uses_method and self.plain_method.trains_features:
            known_logits = self.detector.network.head(features[:known].detach())
        return step, known_logits, labels.repeat(len(kinds))

    def _exposed(
        self, batch: dict[str, torch.Tensor], images: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which of the images have outliers `[U]`, these `[U, 3, H, W]`, and the share of the ID images in them."""
        labels, method = batch["label"], self.plain_method
        sources, outliers, strengths = labels.new_zeros(0), images[:0], images.new_ones(len(labels))
        if self.uses_method and method.makes_outliers:
            sources = torch.arange(len(labels), device=labels.device)
        elif self.uses_outliers and "outlier" in batch:
            strengths = batch["strength"]
            sources = (strengths >= self.settings.min_strength).nonzero().squeeze(1)
            outliers = batch["outlier"][sources].float() / 255
        sight = self._logits_as_tested, self.detector.std
        known = images[sources], labels[sources]
        outliers, share = method.expose(Exposure(*known, outliers, strengths[sources], *sight, progress))
        return sources, outliers, share

    def _logits_as_tested(self, images: torch.Tensor) -> torch.Tensor:
        """Logits by running statistics, which the call leaves as they are."""
        self.model.eval()
        with self.accelerator.autocast():
            logits = self.model(images)
        self._train_mode()
        return logits

    def _train_mode(self) -> None:
        """Training mode, in which batch norm that is frozen keeps its running statistics, and normalizes by them."""
        self.model.train()
        if self.settings.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    @torch.no_grad()
    def _show_all(self) -> None:
        """Features of all images, without augmentation, to the method."""
        self.detector.eval()
        images, outliers = self.sets.images, self.sets.outliers
        exposed = outliers.outliers if isinstance(outliers, OutlierPairs) else outliers
        if isinstance(outliers, OutlierPairs) and outliers.form:
            images = images.changed(outliers.form.undergone)
        known = self._features(images)
        unknown = known[:0] if exposed is None else self._features(exposed)
        labels = torch.tensor(images.labels, device=known.device)
        self.plain_method.begin_epoch(self.epoch, known, labels, unknown)

    def _features(self, images: ImageSet) -> torch.Tensor:
        """Features `[N, D]` of images, without augmentation."""
        plain = Plain(images, self.detector.one, self.settings.image_size)
        loader = DataLoader(plain, VALIDATION_BATCH, num_workers=self.workers)
        batches = (batch.to(self.accelerator.device).float() / 255 for batch in loader)
        return torch.cat([self.detector.features(batch).float() for batch in batches])

    def _mutual_information(self, step: Step) -> torch.Tensor:
        """CLUB between images and their own outliers a feature, at least 0, after fitting q to the detached features.

        The mean over features instead of their sum gives gamma the same meaning for networks of any width.
        """
        x, y = standardized(step.features[step.sources]), standardized(step.outlier_features)
        for _ in range(MI_STEPS):
            self.club_optimizer.zero_grad()
            self.club(x.detach(), y.detach()).backward()
            self.club_optimizer.step()
        return self.club.bound(x, y).clamp(min=0) / x.shape[1]

    @torch.no_grad()
    def _validate(self, detector: Detector) -> tuple[float, torch.Tensor]:
        """Accuracy in percent, and scores, on the validation images."""
        detector.eval()
        right, scores = [], []
        for pixels, labels, rejects in chain.from_iterable(self.validation):
            self._note(rejects)
            if len(labels):
                logits, score = detector.scored(pixels.to(self.accelerator.device).float() / 255)
                right.append(logits.argmax(dim=1).cpu() == labels)
                scores.append(score.cpu())
        if not scores:
            raise OSError(f"no validation image can be read; the last: {rejects[-1]['reason']}")
        return 100 * torch.cat(right).float().mean().item(), torch.cat(scores)

    def _close_epoch(self, losses: dict[str, float], track: Track, title: str) -> None:
        """Validate, keep the best weights, log, and write the checkpoint."""
        row = {"epoch": self.epoch, **losses, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        if self.validation:
            row["validation_accuracy"] = self._validate(self.detector)[0]
            if self._is_to_keep(row["validation_accuracy"]):
                self._keep(row["validation_accuracy"])
            track.say(f"{title}, accuracy {row['validation_accuracy']:.1f} %")
        self.log.append(row)
        self.accelerator.log(row, step=self.epoch)
        self.rejects = dict(gather_object(list(self.rejects.items())))
        if self.folder and self.accelerator.is_main_process:
            save_state(self.folder / CHECKPOINT, self._state())
            write_text(self.folder / "log.jsonl", json_lines(self.log))
            if self.rejects:
                rows = [{"key": key, "reason": reason} for key, reason in sorted(self.rejects.items())]
                write_text(self.folder / "rejects.jsonl", json_lines(rows))

    def _is_to_keep(self, accuracy: float) -> bool:
        """Whether the weights of an epoch are better than those that are kept; never with `keep` 'last'."""
        is_begun = not self.uses_method or self.epoch / self.settings.epochs > self.plain_method.start
        return self.settings.keep == "best" and is_begun and accuracy >= self.best_accuracy

    def _keep(self, accuracy: float) -> None:
        self.best_accuracy, self.best = accuracy, self._weights()

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.detector.state_dict().items()}

    def _go_back(self) -> None:
        """Bring the weights back towards the classifier's: by a quarter, and as far as its accuracy asks.

        Weights between the two classify well, too (Wortsman et al. 2022).
        """
        assert self.start is not None
        end, found = self._weights(), {}
        for share in SHARES:
            self.detector.load_state_dict({name: between(self.start[name], end[name], share) for name in end})
            found[share] = self._validate(self.detector)[0]
            if found[share] >= self.floor:
                break
        if share < SHARES[0] and self.accelerator.is_main_process:
            start, lost = self.floor + (self.settings.max_accuracy_drop or 0), found[SHARES[0]]
            fall = f"the validation accuracy falls from {start:.1f} to {lost:.1f} %"
            kept = f"{share:.0%} of the change of the weights is kept, with {found[share]:.1f} %"
            say(warning(f"{fall}: {kept}"))

    def _note(self, rejects: list[dict]) -> None:
        for reject in rejects:
            self.rejects[reject["key"]] = reject["reason"]

    def _state(self) -> dict:
        keep = ("epoch", "best", "best_accuracy", "floor", "log", "rejects")
        return {name: part.state_dict() for name, part in self._stateful()} | {key: getattr(self, key) for key in keep}

    def _restore(self, state: dict) -> None:
        for name, part in self._stateful():
            part.load_state_dict(state.pop(name))
        vars(self).update(state)

    def _stateful(self) -> Iterator[tuple[str, Any]]:
        yield "detector", self.detector
        yield "method", self.plain_method
        yield "optimizer", self.optimizer
        yield "schedule", self.schedule
        if self.gamma > 0:
            yield "club", self.club
            yield "club_optimizer", self.club_optimizer
        if self.accelerator.scaler is not None:
            yield "scaler", self.accelerator.scaler


def between(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """A share of the way from one value to another; counts are taken from the end."""
    return torch.lerp(start, end, share) if end.is_floating_point() else end


def mi_weight(settings: TrainingSettings, outliers: OutlierPairs | ImageSet | None) -> float:
    """Gamma: as set, or else 1 where each image has its own outlier and the method leaves it as it is.

    Raises:
        ValueError: it is set above 0 where this is not so, without outliers for one.
    """
    has_pairs = isinstance(outliers, OutlierPairs) and METHODS[settings.method].keeps_pairs
    if settings.mi_weight is None:
        return float(has_pairs)
    if settings.mi_weight > 0 and not has_pairs:
        raise ValueError(
            f"`mi_weight` is {settings.mi_weight}, but mutual information is between an image and its own outlier: use"
            " an outlier set of these images with the method 'oe' or 'energy', or a weight of 0"
        )
    return settings.mi_weight if has_pairs else 0.0
