"""Scores that might mend what SONA's detectors lose by with the post-hoc scores as published, for the table `remedies`.

Each is fitted as those of `sona_pipeline.POST_HOC` are: to what is known, it gives a function from a batch to scores.
`mahalanobis_normalized`, which came out of this, is one of the package's own scores by now.
"""

from dataclasses import replace

import torch
from pytorch_ood import detector as ood
from torch.nn.functional import normalize

from sona_pipeline import POST_HOC, energy

SHARPNESS = 0.3
RIDGE = 1e-6


@torch.no_grad()
def multi_mahalanobis_normalized(known):
    """Mahalanobis distances of the stages, with the mean activations of each stage divided by their length."""
    detector = known.detector

    def means(pixels: torch.Tensor) -> list[torch.Tensor]:
        maps, found = (pixels - detector.mean) / detector.std, []
        for stage in detector.network.stages():
            maps = stage(maps)
            found.append(normalize(maps.mean(dim=(2, 3)).double()))
        return found

    batches = [(means(seen.pixels), labels) for seen, labels in known.training_images()]
    labels = torch.cat([part for _, part in batches])
    gaussians = [_gaussian(torch.cat(rows), labels) for rows in zip(*(part for part, _ in batches))]

    def distance(rows: torch.Tensor, centers: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
        gaps = rows[:, None] - centers
        return ((gaps @ precision) * gaps).sum(dim=2).amin(dim=1) / 2

    return lambda seen: sum(distance(rows, *gaussian) for rows, gaussian in zip(means(seen.pixels), gaussians))


def _gaussian(rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means `[C, D]` of the classes, and the inverse `[D, D]` of the scatter around them."""
    centers = torch.stack([rows[labels == label].mean(dim=0) for label in labels.unique()])
    gaps = rows - centers[labels]
    return centers, torch.linalg.inv(gaps.T @ gaps + RIDGE * torch.eye(rows.shape[1], dtype=rows.dtype).to(rows.device))


def kl_matching_sharp(known):
    """KL matching with templates at temperature 0.3: near to one-hot, as those of an accurate classifier are."""
    method = ood.KLMatching(None).to(known.detector.device)
    method.fit_logits(known.validation.logits / SHARPNESS, known.validation.labels)
    return lambda seen: method.predict_logits(seen.logits)


def ash_pruned(known, percentile: float = 90):
    """ASH-P: the highest 10 % of the features stay, and are not scaled up. SCALE without its factor is the energy."""
    head = known.detector.network.head
    method = ood.ASH(None, lambda maps: head(maps.flatten(1)), "ash-p", percentile / 100)
    return lambda seen: method.predict_feature_maps(seen.features[:, :, None, None].clone())


def energy_and_knn(known):
    """Energy plus `knn`, each less its mean and by its standard deviation over the images that it is fitted to."""
    knn = POST_HOC["knn"].fit(known)

    def both(seen) -> torch.Tensor:
        return torch.stack([energy(seen.logits).double(), knn(seen).double()], dim=1)

    with torch.no_grad():
        scores = torch.cat([both(seen) for seen, _ in known.training_images()])
    mean, std = scores.mean(dim=0), scores.std(dim=0)
    return lambda seen: ((both(seen) - mean) / std).sum(dim=1)


REMEDIES = {
    "multi_mahalanobis_normalized": replace(POST_HOC["multi_mahalanobis"], fit=multi_mahalanobis_normalized),
    "kl_matching_sharp": replace(POST_HOC["kl_matching"], fit=kl_matching_sharp),
    "ash_pruned": replace(POST_HOC["ash_s"], fit=ash_pruned),
    "energy_and_knn": replace(POST_HOC["entropy"], fit=energy_and_knn),
}
