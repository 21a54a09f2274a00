"""UDG: outliers that lie among ID images are taken for these, and the others are exposed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from torch import nn

from sona_pipeline.training.methods.base import Method, Step
from sona_pipeline.training.methods.outlier_exposure import outlier_exposure

if TYPE_CHECKING:
    from sona_pipeline.detection.networks import Network
    from sona_pipeline.training.settings import TrainingSettings

CLUSTERS, IMAGES_A_CLUSTER, DIMENSIONS, ROUNDS = 1000, 20, 256, 20
"""At most as many clusters, and one for every twenty images; at most as many dimensions of PCA; rounds of k-means."""
PURE = 0.8
"""Share above which a cluster belongs to a class."""
OE_WEIGHT, CLUSTER_WEIGHT = 0.5, 0.1


class UDG(Method):
    """Unsupervised dual grouping (Yang et al. 2021, "Semantically Coherent Out-of-Distribution Detection", ICCV).

    Each epoch, the features of ID images and outliers are clustered. Outliers in a cluster that is nearly all of one
    class get its label; an auxiliary head learns the clusters. Each epoch starts from the labels
    of the data, where OpenOOD's code carries labels of outliers over.
    """

    weight = 1.0
    keeps_pairs = False
    looks_at_all = True
    skips_without_outliers = False

    def __init__(self, network: Network, settings: TrainingSettings):
        super().__init__(network, settings)
        self.seed = settings.seed
        self.auxiliary = nn.Linear(network.head.in_features, CLUSTERS)
        self._groups: Groups | None = None

    def begin_epoch(self, epoch: int, known: torch.Tensor, labels: torch.Tensor, outliers: torch.Tensor) -> None:
        """Cluster anew, and begin the auxiliary head anew."""
        seed = (self.seed + epoch) % 2**32
        self._groups = Groups(known, labels, outliers, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            weight = self.auxiliary.weight
            weight.copy_(0.01 * torch.randn(weight.shape, generator=generator))
            self.auxiliary.bias.zero_()

    def forward(self, step: Step) -> torch.Tensor:
        """Cross-entropy of outliers with a label, 0.5 outlier exposure of the others, 0.1 cross-entropy of clusters."""
        groups = self._groups
        if groups is None:
            raise RuntimeError("`begin_epoch` comes first")
        label = groups.labels[step.outlier_places]
        has_label = label >= 0
        features = torch.cat([step.features, step.outlier_features])
        cluster = torch.cat([groups.known[step.places], groups.outliers[step.outlier_places]])
        of_clusters = F.cross_entropy(self.auxiliary(features), cluster, reduction="none")
        loss = CLUSTER_WEIGHT * (of_clusters * groups.balance[cluster]).mean()
        if has_label.any():
            of_labels = F.cross_entropy(step.outlier_logits[has_label], label[has_label], reduction="sum")
            loss = loss + of_labels / (len(step.labels) + int(has_label.sum()))
        if (~has_label).any():
            loss = loss + OE_WEIGHT * outlier_exposure(step.outlier_logits[~has_label])
        return loss


class Groups:
    """Clusters of the features of an epoch, and what follows for the outliers.

    Args:
        known, labels: features `[N, D]` and labels `[N]` of the ID images.
        outliers: features `[M, D]`.
        seed: of k-means.

    Attributes:
        known, outliers: cluster of each, `[N]` and `[M]`.
        labels: `[M]`, the class whose images an outlier lies among, or -1.
        balance: `[K]`, weight of the images of a cluster: one over the root of its size, with mean 1 over images.
    """

    def __init__(self, known: torch.Tensor, labels: torch.Tensor, outliers: torch.Tensor, seed: int):
        device = known.device
        cluster = torch.from_numpy(clustered(torch.cat([known, outliers]).cpu().numpy(), seed)).to(device)
        self.known, self.outliers = cluster[: len(known)], cluster[len(known) :]
        count, classes = int(cluster.max()) + 1, int(labels.max()) + 1
        sizes = cluster.bincount(minlength=count)
        of_class = torch.zeros(count, classes, device=device)
        of_class.index_put_((self.known, labels), torch.ones(len(labels), device=device), accumulate=True)
        share, label = (of_class / sizes[:, None]).max(dim=1)
        self.labels = torch.where(share > PURE, label, -1)[self.outliers]
        balance = sizes.float().rsqrt()
        self.balance = balance / balance[cluster].mean()


def clustered(features: np.ndarray, seed: int) -> np.ndarray:
    """Cluster of each row of `[N, D]`: k-means of whitened principal components of length 1."""
    dimensions = min(DIMENSIONS, *features.shape)
    whitened = PCA(dimensions, whiten=True, svd_solver="full").fit_transform(features)
    count = max(2, min(CLUSTERS, len(features) // IMAGES_A_CLUSTER))
    return KMeans(count, n_init=1, max_iter=ROUNDS, random_state=seed).fit_predict(normalize(whitened)).astype(np.int64)
