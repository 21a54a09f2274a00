import copy
import importlib.util

import numpy as np
import pytest
import torch
from pytorch_ood import detector as ood
from scipy.stats import multivariate_normal, weibull_min
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from sona_pipeline.detection.detector import Detector
from sona_pipeline.detection.scores.of_logits import energy, msp
from sona_pipeline.evaluation.posthoc import POST_HOC, Known, Seen, adascale, fitted as fitted_to_known, gmm, opengan
from sona_pipeline.evaluation.posthoc.rankfeat import without_first
from sona_pipeline.evaluation.posthoc.search import Trial, candidates, searched

BY_STAGES = {"multi_mahalanobis", "mds_ensemble", "rankfeat"}
OF_TWO_HEADS = {"mcd"}
ON_VALIDATION = ("temperature_scaling", "kl_matching", "react", "vra", "adascale_a", "adascale_l")


def fitted(name, detector, batches, validation=None, **parameters):
    """The score as a function of pixels."""
    known = Known(detector, batches, validation)
    found = fitted_to_known(name, known, **parameters)
    return lambda pixels: found(Seen(known.detector, pixels))


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy copies of three coarse patterns, and which one it is."""
    labels = torch.arange(count) % 3
    patterns = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    noise = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return 0.6 * F.interpolate(patterns, 32)[labels] + 0.4 * noise, labels


def in_batches(pixels: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(pixels.split(25), labels.split(25)))


TRAIN, TEST = images(150, seed=0), images(10, seed=1)[0]
NOISE = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(2))
SEEN = torch.cat([TEST, NOISE])


@torch.no_grad()
def taught(network: str) -> Detector:
    """A random network whose head is fitted to the training images by least squares."""
    torch.manual_seed(0)
    detector = Detector(["a", "b", "c"], network, 32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    for _ in range(10):
        detector(TRAIN[0])  # in training mode, which sets the statistics of the batch normalization
    detector.eval()
    head = detector.network.head
    head.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    targets = 6 * torch.eye(3)[TRAIN[1]] - head.bias
    head.weight.copy_(torch.linalg.lstsq(detector.features(TRAIN[0]), targets, driver="gelsd").solution.T)
    return detector


@pytest.fixture(scope="module")
def detector():
    return taught("resnet8")


def logsumexp(logits: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(logits, axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Worked:
    """The formulas of the papers in double precision: x, w, b and y are training features, head and labels; z features
    to score."""

    def __init__(self, detector: Detector):
        with torch.no_grad():
            self.x, self.z = (detector.features(pixels).double().numpy() for pixels in (TRAIN[0], SEEN))
        self.y = TRAIN[1].numpy()
        self.w = detector.network.head.weight.detach().double().numpy()
        self.b = detector.network.head.bias.detach().double().numpy()

    def logits(self, features):
        return features @ self.w.T + self.b

    def knn(self):
        return np.sort(np.linalg.norm(unit(self.z)[:, None] - unit(self.x), axis=2), axis=1)[:, 49]

    def react(self):
        return -logsumexp(self.logits(np.minimum(self.z, np.percentile(self.x, 90))))

    def dice(self):
        contributions = self.w * self.x.mean(axis=0)
        sparse = np.where(contributions > np.quantile(contributions, 0.9), self.w, 0)
        return -logsumexp(self.z @ sparse.T + self.b)

    def distances(self, features, centers):
        scatter = 1e-6 * np.eye(self.x.shape[1])
        for row, center in zip(self.x, centers):
            scatter += np.outer(row - center, row - center)
        means = {tuple(center): center for center in centers}.values()
        return np.array([min((row - m) @ np.linalg.solve(scatter, row - m) for m in means) for row in features])

    def class_means(self):
        return np.stack([self.x[self.y == label].mean(axis=0) for label in self.y])

    def mahalanobis(self):
        return 0.5 * self.distances(self.z, self.class_means())

    def mahalanobis_normalized(self):
        self.x, self.z = unit(self.x), unit(self.z)
        return self.mahalanobis()

    def rmd(self):
        everything = np.tile(self.x.mean(axis=0), (len(self.x), 1))
        return self.distances(self.z, self.class_means()) - self.distances(self.z, everything)

    def vim(self):
        origin = -np.linalg.pinv(self.w) @ self.b
        _, _, directions = np.linalg.svd(self.x - origin)
        residual = directions[64:]  # of 128 features
        lengths = [np.linalg.norm((rows - origin) @ residual.T, axis=1) for rows in (self.x, self.z)]
        alpha = self.logits(self.x).max(axis=1).mean() / lengths[0].mean()
        return alpha * lengths[1] - logsumexp(self.logits(self.z))

    def gradnorm(self):
        return -np.abs(softmax(self.logits(self.z)) - 1 / 3).sum(axis=1) * np.abs(self.z).sum(axis=1)

    def kl_matching(self):
        known, p = softmax(self.logits(self.x)), softmax(self.logits(self.z))
        typical = [known[known.argmax(axis=1) == label].mean(axis=0) for label in range(3)]
        return np.min([(p * np.log(p / d)).sum(axis=1) for d in typical], axis=0)

    def entropy(self):
        p = softmax(self.logits(self.z))
        return -(p * np.log(p)).sum(axis=1)

    def gen(self):
        p = softmax(self.logits(self.z))
        return ((p * (1 - p)) ** 0.1).sum(axis=1)

    def she(self):
        right = self.logits(self.x).argmax(axis=1) == self.y
        patterns = np.stack([self.x[right & (self.y == label)].mean(axis=0) for label in range(3)])
        return -(self.z * patterns[self.logits(self.z).argmax(axis=1)]).sum(axis=1)

    def nnguide(self):
        drawn = torch.randperm(150, generator=torch.Generator().manual_seed(0))[:100].numpy()
        bank = unit(self.x[drawn]) * logsumexp(self.logits(self.x[drawn]))[:, None]
        nearest = unit(self.z) @ bank.T
        return -nearest.mean(axis=1) * logsumexp(self.logits(self.z))

    def shares(self, kept: int):
        """Sum of the features over the sum of the `kept` largest."""
        return (self.z.sum(axis=1) / np.sort(self.z, axis=1)[:, -kept:].sum(axis=1))[:, None]

    def ash_s(self):
        least = np.sort(self.z, axis=1)[:, [-13]]  # 10 % of 128
        return -logsumexp(self.logits(np.where(self.z >= least, self.z, 0) * np.exp(self.shares(13))))

    def ash_b(self):
        least = np.sort(self.z, axis=1)[:, [-13]]
        return -logsumexp(self.logits(np.where(self.z >= least, self.z.sum(axis=1, keepdims=True) / 13, 0)))

    def vra(self):
        return -logsumexp(self.logits(np.clip(self.z, *np.percentile(self.x, [10, 90]))))

    def fdbd(self):
        logits = self.logits(self.z)
        said = logits.argmax(axis=1)
        gaps = np.linalg.norm(self.w[said][:, None] - self.w, axis=2) + np.eye(3)[said]
        distances = (logits.max(axis=1)[:, None] - logits) / gaps
        return -distances.sum(axis=1) / np.linalg.norm(self.z - self.x.mean(axis=0), axis=1)

    def nci(self):
        said, gaps = self.logits(self.z).argmax(axis=1), self.z - self.x.mean(axis=0)
        return -(unit(gaps) * self.w[said]).sum(axis=1) - 1e-4 * self.z.sum(axis=1)

    def scale(self):
        return -logsumexp(self.logits(self.z * np.exp(self.shares(19))))  # 15 % of 128

    def lts(self):
        return -logsumexp(self.logits(self.z) * self.shares(6) ** 2)  # 5 % of 128

    def pnml(self):
        x, z = unit(self.x), unit(self.z)
        inverse = np.linalg.pinv(x.T @ x, rcond=128 * np.finfo(np.float32).eps)  # directions that count as empty
        far = (z @ inverse * z).sum(axis=1, keepdims=True)
        p = softmax(self.logits(z))
        return np.log((p / (p + (1 - p) * p ** (far / (1 + far)))).sum(axis=1)) / np.log(3)

    def gmm(self):
        parts = []
        for label in range(3):
            own = self.x[self.y == label]
            covariance = np.cov(own.T, bias=True) + 1e-3 * np.eye(128)
            parts.append(
                multivariate_normal(own.mean(axis=0), covariance).logpdf(self.z) + np.log(len(own) / len(self.x))
            )
        return -logsumexp(np.stack(parts, axis=1))

    def graduncertainty(self):
        """By autograd: the cross-entropy of each class by itself, summed."""
        found = []
        for row in torch.from_numpy(self.z):
            w, b = torch.from_numpy(self.w).requires_grad_(), torch.from_numpy(self.b).requires_grad_()
            slopes = torch.autograd.grad(-(w @ row + b).log_softmax(dim=0).sum(), (w, b))
            found.append(-sum(slope.square().sum().item() for slope in slopes))
        return np.array(found)

    def openmax(self):
        known, scored = self.logits(self.x), self.logits(self.z)
        known = [known[(self.y == label) & (known.argmax(axis=1) == label)] for label in range(3)]
        revised = []
        for row in scored:
            shares = np.zeros(3)
            for rank, label in enumerate(np.argsort(-row)):
                center = known[label].mean(axis=0)
                tail = np.sort(np.linalg.norm(known[label] - center, axis=1))[-20:]
                shape, _, size = weibull_min.fit(tail - tail.min() + 1, floc=0)
                distance = np.linalg.norm(row - center) - tail.min() + 1
                shares[label] = weibull_min.cdf(distance, shape, scale=size) * (3 - rank) / 3
            revised.append([(row * shares).sum(), *(row * (1 - shares))])
        return softmax(np.array(revised))[:, 0]


@pytest.mark.parametrize("name", [name for name in POST_HOC if hasattr(Worked, name)])
def test_scores_are_those_of_the_papers(detector, name):
    scores = fitted(name, detector, in_batches(*TRAIN))(SEEN).numpy()
    expected = getattr(Worked(detector), name)()
    np.testing.assert_allclose(scores, expected, rtol=2e-3, atol=2e-5)
    assert np.ptp(expected) > 1e-3


@pytest.mark.parametrize("name", ["adascale_a", "adascale_l"])
def test_adascale_image_by_image(detector, name):
    head = detector.network.head

    def moved_and_ratio(image):
        """Q' of an image, and by a percentile its ratio r."""
        normal = ((image - detector.mean[0]) / detector.std[0]).requires_grad_()
        logits = detector((normal * detector.std[0] + detector.mean[0])[None])[0]
        (slope,) = torch.autograd.grad(logits[logits.argmax()], normal)
        least = slope.abs().flatten().argsort()[: int(0.05 * slope.numel())]
        moved = normal.detach().flatten().clone()
        moved[least] += 0.5 * slope.flatten()[least].sign()
        with torch.no_grad():
            pixels = torch.stack([normal.detach(), moved.view_as(image)]) * detector.std[0] + detector.mean[0]
            before, after = detector.features(pixels)
        order = before.argsort(descending=True)
        moves = after[order[:6]].relu().sum() + 10 * (after - before)[order[:1]].abs().sum()  # 5 % and 1 % of 128

        def ratio(percentile):
            return before.sum() / before.sort(descending=True).values[: 128 - round(1.28 * percentile)].sum()

        return float(moves), before, ratio

    usual = np.array([moved_and_ratio(image)[0] for image in TRAIN[0]])
    expected = []
    for image in SEEN:
        moves, features, ratio = moved_and_ratio(image)
        r = ratio(75 + 10 * (usual > moves).mean())
        with torch.no_grad():
            logits = head(features * r.exp()) if name == "adascale_a" else head(features) * r**2
        expected.append(-logits.logsumexp(dim=0).item())
    scores = fitted(name, detector, in_batches(*TRAIN))(SEEN).numpy()
    np.testing.assert_allclose(scores, expected, rtol=2e-3)
    assert np.ptp(expected) > 1e-3


def test_a_search_of_both_adascales_moves_every_image_once_and_finds_what_separate_fits_find(detector, monkeypatch):
    held_out, unknown = in_batches(*images(60, seed=3)), [(NOISE, torch.full((10,), -1))]
    moved, perturbed = [], adascale.perturbed
    monkeypatch.setattr(adascale, "perturbed", lambda *given: moved.append(len(given[1])) or perturbed(*given))
    trial = Trial(Known(detector, in_batches(*TRAIN), held_out), unknown)
    found = {name: searched(name, trial) for name in ("adascale_a", "adascale_l")}
    assert sum(moved) == 60 + 10

    def auroc(name, percentiles):
        score = fitted(name, detector, in_batches(*TRAIN), held_out, percentiles=percentiles)
        sides = [score(pixels) for part in (held_out, unknown) for pixels, _ in part]
        return 100 * roc_auc_score([0] * 60 + [1] * 10, torch.cat(sides))

    for name, best in found.items():
        assert best.validation_auroc == pytest.approx(auroc(name, best.parameters["percentiles"]))
        assert all(auroc(name, **one) <= best.validation_auroc + 1e-6 for one in candidates(name)[::7])


def test_gaussians_of_many_classes_are_asked_in_parts(detector, monkeypatch):
    whole = fitted("gmm", detector, in_batches(*TRAIN))(SEEN)
    asked, predict = [], ood.GMM.predict_features
    monkeypatch.setattr(gmm, "MOST", 3 * 3 * detector.network.head.in_features * 8 * 7)
    monkeypatch.setattr(ood.GMM, "predict_features", lambda self, rows: asked.append(len(rows)) or predict(self, rows))
    assert fitted("gmm", detector, in_batches(*TRAIN))(SEEN).tolist() == pytest.approx(whole.tolist(), rel=1e-4)
    assert asked == [7, 7, 6]


def test_nac_counts_the_states_that_rightly_classified_training_images_had(detector):
    head = detector.network.head

    def states(pixels):
        """Sigmoid of 100 z times the slope of -mean log p, which is W^T (p - 1 / C), `[B, D]`."""
        with torch.no_grad():
            features = detector.features(pixels)
            gap = head(features).softmax(dim=1) - 1 / 3
            return torch.sigmoid(100 * features * (gap @ head.weight)).double().numpy()

    lower = np.log(np.linspace(1, np.sqrt(1000), 26)) / np.log(1000)
    edges = np.concatenate([lower, 1 - lower[::-1][1:]])
    assert len(edges) == 51 and edges[25] == pytest.approx(0.5)
    with torch.no_grad():
        is_right = (detector(TRAIN[0]).argmax(dim=1) == TRAIN[1]).numpy()
    known, seen = states(TRAIN[0])[is_right], states(SEEN)
    expected = np.zeros(len(SEEN))
    for neuron, values in zip(known.T, seen.T):
        counts = np.histogram(neuron, edges)[0]
        places = [max(k for k in range(50) if edges[k] <= value) for value in values]
        expected -= np.minimum(counts[places] / 50, 1) / known.shape[1]
    scores = fitted("nac", detector, in_batches(*TRAIN))(SEEN).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert np.ptp(expected) > 0.05
    wrong = in_batches(TRAIN[0][is_right], (TRAIN[1][is_right] + 1) % 3)
    with pytest.raises(ValueError, match="no training image is classified correctly"):
        fitted("nac", detector, wrong)


def test_opengan_takes_the_epoch_that_tells_images_from_midpoints_best(detector):
    validation = in_batches(*images(90, seed=9))
    chosen = fitted("opengan", detector, in_batches(*TRAIN), validation, epochs=12)
    features = Known(detector, validation).training
    predicted = features.logits.argmax(dim=1)
    other = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    between = (0.5 * features.features + 0.5 * features.features[other])[predicted != predicted[other]]
    assert 40 < len(between) < 80  # two of three classes are others

    known = Known(detector, in_batches(*TRAIN), validation)

    def auroc(score):
        known_scores, unknown_scores = (
            score(Seen(known.detector, features=rows)) for rows in (features.features, between)
        )
        return roc_auc_score(np.repeat([0, 1], [90, len(between)]), torch.cat([known_scores, unknown_scores]))

    by_epoch = [auroc(fitted_to_known("opengan", known, epochs=epochs, keep_best=False)) for epochs in range(1, 13)]
    assert auroc(fitted_to_known("opengan", known, epochs=12)) == pytest.approx(max(by_epoch), abs=1e-6)
    assert max(by_epoch) > min(by_epoch) + 0.01
    assert chosen(SEEN).isfinite().all()


@torch.no_grad()
def test_mcd_is_the_distance_between_two_heads():
    torch.manual_seed(0)
    detector = Detector(["a", "b", "c"], image_size=32, heads=2).eval()
    features = detector.features(SEEN)
    heads = detector.network.head, detector.network.second_head
    first, second = (softmax(head(features).double().numpy()) for head in heads)
    np.testing.assert_allclose(fitted("mcd", detector, [])(SEEN), np.abs(first - second).sum(axis=1), rtol=1e-4)


@torch.no_grad()
def test_rankfeat_scores_features_as_the_head_takes_them():
    torch.manual_seed(0)
    plain = Detector(["a", "b", "c"], image_size=32).eval()
    scaled = plain.with_settings(feature_scale=0.5).eval()
    scores = [fitted("rankfeat", one, [])(SEEN) for one in (plain, scaled)]
    assert not torch.allclose(*scores)
    *front, last = plain.network.stages()
    maps = torch.nn.Sequential(*front)((SEEN - plain.mean) / plain.std)
    pooled = [end.mean(dim=(2, 3)) for end in (without_first(last(maps)), last(without_first(maps)))]
    scored = [0.5 * (rows - rows.mean(dim=1, keepdim=True)) / rows.std(dim=1, keepdim=True) for rows in pooled]
    logits = sum(plain.network.head(rows) for rows in scored) / 2
    assert torch.allclose(scores[1], -logits.logsumexp(dim=1), atol=1e-4)


def test_opengan_has_the_layers_of_the_paper():
    """As OpenOOD has them for features of 512 entries."""
    widths = [layer.out_features for layer in opengan.generator(512) if isinstance(layer, torch.nn.Linear)]
    assert widths == [512, 256, 128, 256, 512]
    widths = [layer.out_features for layer in opengan.discriminator(512) if isinstance(layer, torch.nn.Linear)]
    assert widths == [512, 256, 128, 64, 1]
    assert isinstance(opengan.generator(512)[-1], torch.nn.Linear)  # made features may be negative


def against_gradient(pixels: torch.Tensor, detector: Detector, loss) -> torch.Tensor:
    pixels = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(detector, pixels), pixels)
    return (pixels - 0.0014 * gradient.sign()).detach()


def test_odin_steps_by_its_epsilon_in_pixels(detector):
    def unlikeliness(detector, pixels):
        return -(detector(pixels) / 1000).log_softmax(dim=1).amax(dim=1).sum()

    moved = against_gradient(SEEN, detector, unlikeliness)
    with torch.no_grad():
        expected = -(detector(moved) / 1000).softmax(dim=1).amax(dim=1)
        unmoved = -(detector(SEEN) / 1000).softmax(dim=1).amax(dim=1)
    scores = fitted("odin", detector, [])(SEEN)
    assert (scores - expected).abs().max() < 1e-6
    assert (scores - unmoved).abs().max() > 1e-5


def test_mahalanobis_odin_steps_nearer_to_the_class(detector):
    batches = in_batches(*TRAIN)
    plain, moved = (fitted(name, detector, batches)(SEEN) for name in ("mahalanobis", "mahalanobis_odin"))
    assert (moved < plain).all()
    worked = Worked(detector)
    means = torch.from_numpy(np.unique(worked.class_means(), axis=0))
    x, centers = torch.from_numpy(worked.x), torch.from_numpy(worked.class_means())
    precision = torch.linalg.inv((x - centers).T @ (x - centers) + 1e-6 * torch.eye(128, dtype=torch.float64))

    def distances(detector, pixels):
        gap = detector.features(pixels).double()[:, None] - means
        return torch.einsum("bcd,de,bce->bc", gap, precision, gap).amin(dim=1).sum()

    nearer = against_gradient(SEEN, detector, distances)
    assert torch.allclose(moved, fitted("mahalanobis", detector, batches)(nearer), rtol=1e-3)


@torch.no_grad()
def test_multi_mahalanobis_is_the_sum_over_the_stages(detector):
    maps, means = (torch.cat([TRAIN[0], SEEN]) - detector.mean) / detector.std, []
    for stage in detector.network.stages():
        maps = stage(maps)
        means.append(maps.mean(dim=(2, 3)).double().numpy())
    expected = 0
    for rows in means:
        stage = Worked(detector)
        stage.x, stage.z = rows[:150], rows[150:]
        expected = expected + stage.mahalanobis()
    scores = fitted("multi_mahalanobis", detector, in_batches(*TRAIN))(SEEN).numpy()
    np.testing.assert_allclose(scores, expected, rtol=2e-3)


@torch.no_grad()
def test_temperature_scaling_is_softmax_at_a_temperature_that_fits_better(detector):
    batches = in_batches(*TRAIN)
    logits, scores = detector(SEEN), fitted("temperature_scaling", detector, batches)(SEEN)
    candidates = torch.linspace(0.1, 3, 30001)
    gaps = [(msp(logits, t) - scores).abs().max() for t in candidates.tolist()]
    found = candidates[int(np.argmin(gaps))].item()
    assert min(gaps) < 1e-3

    def loss(temperature):
        return F.cross_entropy(detector(TRAIN[0]) / temperature, TRAIN[1])

    assert loss(found) < loss(1.5) and found != pytest.approx(1.5, abs=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("network", ["resnet8", "timm:resnet10t"])
def test_one_finite_score_an_image_whatever_the_batch_and_the_detector_as_it_was(network):
    detector = taught(network)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    pixels, batches = SEEN.clone(), in_batches(*TRAIN)
    for name in POST_HOC.keys() - OF_TWO_HEADS - (BY_STAGES if network.startswith("timm:") else set()):
        score = fitted(name, detector, batches)
        together, alone = score(pixels), torch.cat([score(image[None]) for image in pixels[7:13]])
        assert together.shape == (20,) and together.isfinite().all(), name
        assert torch.allclose(together[7:13], alone, rtol=1e-3, atol=1e-5), name
    assert torch.equal(pixels, SEEN) and not pixels.requires_grad
    assert not any(module.training for module in detector.modules())
    assert all(p.grad is None and p.requires_grad for p in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "knn",
        "mahalanobis",
        "mahalanobis_normalized",
        "mahalanobis_odin",
        "multi_mahalanobis",
        "mds_ensemble",
        "vim",
        "gram",
    ],
)
def test_noise_scores_above_images_like_those_trained_on(detector, name):
    score = fitted(name, detector, in_batches(*TRAIN))
    assert score(NOISE).min() > score(TEST).max()


def test_a_detector_in_training_mode_is_scored_as_in_eval_mode(detector):
    expected = fitted("knn", detector, in_batches(*TRAIN))(SEEN)
    training = detector.with_settings().train()
    assert training.training
    assert torch.equal(fitted("knn", training, in_batches(*TRAIN))(SEEN), expected)
    assert training.training


@pytest.mark.parametrize("name", [name for name in POST_HOC if name not in OF_TWO_HEADS])
def test_a_head_without_bias_is_one_with_a_bias_of_zero(detector, name):
    zero, none = copy.deepcopy(detector), copy.deepcopy(detector)
    zero.network.head.bias.data.zero_()
    none.network.head.bias = None
    scores = [fitted(name, one, in_batches(TRAIN[0][:60], TRAIN[1][:60]))(SEEN) for one in (zero, none)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


def test_knn_of_few_images_is_the_distance_to_the_farthest(detector):
    worked, few = Worked(detector), [(TRAIN[0][:9], TRAIN[1][:9])]
    expected = np.linalg.norm(unit(worked.z)[:, None] - unit(worked.x[:9]), axis=2).max(axis=1)
    np.testing.assert_allclose(fitted("knn", detector, few)(SEEN).numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["mahalanobis", "rmd"])
def test_scatter_of_fewer_images_than_features_is_inverted_in_double_precision(detector, name):
    """It is 1e-6 in most directions, which is lost beside the others in single precision."""
    worked = Worked(detector)
    worked.x, worked.y = worked.x[:60], worked.y[:60]
    scores = fitted(name, detector, [(TRAIN[0][:60], TRAIN[1][:60])])(SEEN).numpy()
    np.testing.assert_allclose(scores, getattr(worked, name)(), rtol=2e-3)
    assert torch.get_default_dtype() == torch.float32


def test_same_fit_every_time_without_touching_the_random_state(detector):
    torch.manual_seed(3)
    first = fitted("gram", detector, in_batches(*TRAIN))(SEEN)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(fitted("gram", detector, in_batches(*TRAIN))(SEEN), first)


def test_validation_images_are_for_the_methods_that_want_them(detector):
    other = in_batches(*images(150, seed=7))
    for name in (*ON_VALIDATION, "knn"):
        fits = [fitted(name, detector, *sets)(SEEN) for sets in ((in_batches(*TRAIN), other), (other,))]
        assert torch.equal(*fits) == (name in ON_VALIDATION)


def test_what_cannot_be_fitted_is_refused(detector, monkeypatch):
    with pytest.raises(ValueError, match=r"no post-hoc method named 'mdsens'.*multi_mahalanobis"):
        fitted("mdsens", detector, in_batches(*TRAIN))
    with pytest.raises(ValueError, match=r"classes \[0, 1\], but .* every class from 0 to 2"):
        fitted("mahalanobis", detector, [(TRAIN[0], TRAIN[1] % 2)])
    with pytest.raises(ValueError, match=r"classes \[0, 1, 5\], but"):
        fitted("gram", detector, [(TRAIN[0], torch.where(TRAIN[1] == 2, 5, TRAIN[1]))])
    for name in BY_STAGES:
        with pytest.raises(ValueError, match="stages of a network are known"):
            fitted(name, Detector(["a", "b", "c"], "timm:resnet10t", 32), in_batches(*TRAIN))
    with pytest.raises(ValueError, match="has one head, and the score 'mcd' compares two"):
        fitted("mcd", detector, in_batches(*TRAIN))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sona-pipeline\[baselines\]"):
        fitted("knn", detector, in_batches(*TRAIN))


@torch.no_grad()
def test_pytorch_ood_takes_our_detectors_as_they_are(detector):
    logits = detector(SEEN)
    assert torch.allclose(ood.EnergyBased(detector)(SEEN), energy(logits))
    assert torch.allclose(ood.MaxSoftmax(detector)(SEEN), msp(logits))


def gram_by_hand(detector: Detector, validation: torch.Tensor) -> torch.Tensor:
    """The scores of `SEEN`, with whole Gram matrices and image by image."""

    def maps_of(image: torch.Tensor) -> list[torch.Tensor]:
        layers = []
        hooks = [
            module.register_forward_hook(lambda _, __, output: layers.append(output[0].flatten(1).double().clone()))
            for module in detector.network.modules()
            if isinstance(module, (torch.nn.Conv2d, torch.nn.ReLU))
        ]
        logits = detector(image[None])[0]
        for hook in hooks:
            hook.remove()
        return layers, logits.softmax(dim=0).max(dim=0)

    def sums(image):
        layers, (confidence, said) = maps_of(image)
        rows = []
        for layer in layers:
            powers = [layer**p for p in range(1, 11)]
            grams = [(power @ power.T).sum(dim=1) for power in powers]
            rows.append(torch.stack([g.sign() * g.abs() ** (1 / p) for p, g in enumerate(grams, 1)]))
        return rows, confidence.double(), int(said)

    training = [sums(image) for image in TRAIN[0]]

    def deviations(image):
        rows, confidence, said = sums(image)
        found = []
        for place, row in enumerate(rows):
            alike = torch.stack([other[place] for other, _, label in training if label == said])
            low, high = alike.amin(dim=0), alike.amax(dim=0)
            outside = (low - row).relu() / (low + 1e-6).abs() + (row - high).relu() / (high + 1e-6).abs()
            found.append(outside.sum())
        return torch.stack(found) / confidence

    mean = torch.stack([deviations(image) for image in validation]).mean(dim=0) + 1e-7
    return torch.stack([(deviations(image) / mean).sum() for image in SEEN])


@torch.no_grad()
def test_gram_is_of_all_convolutions_and_activations_and_divided_by_the_confidence(detector):
    validation = images(30, seed=4)
    scores = fitted("gram", detector, in_batches(*TRAIN), in_batches(*validation))(SEEN)
    torch.testing.assert_close(scores, gram_by_hand(detector, validation[0]), rtol=1e-2, atol=1e-2)


def test_gram_tells_images_apart_that_four_stages_take_for_perfect(detector):
    scores = fitted("gram", detector, in_batches(*TRAIN), in_batches(*images(60, seed=3)))(images(90, seed=8)[0])
    assert (scores <= 0).float().mean() < 0.05


def test_openmax_is_fitted_to_images_that_are_classified_correctly(detector):
    wrong = torch.where(torch.arange(150) < 15, (TRAIN[1] + 1) % 3, TRAIN[1])
    with torch.no_grad():
        right = detector(TRAIN[0]).argmax(dim=1) == wrong
    all_of_them = fitted("openmax", detector, in_batches(TRAIN[0], wrong))(SEEN)
    only_right = fitted("openmax", detector, in_batches(TRAIN[0][right], wrong[right]))(SEEN)
    assert right.sum() < 140 and torch.allclose(all_of_them, only_right, atol=1e-9)
    with pytest.raises(ValueError, match="0 images of class 'a' are classified correctly: OpenMax needs two or more"):
        fitted("openmax", detector, in_batches(TRAIN[0], (TRAIN[1] + 1) % 3))


def test_gen_tells_sure_images_apart(detector):
    """A clamp of the probabilities at 1e-7 would give them all one score."""
    sharp = detector.with_settings()
    sharp.network.head.weight.data *= 6
    scores = fitted("gen", sharp, [])(SEEN)
    assert len(scores.unique()) == len(SEEN)


def test_features_are_computed_once_for_all_scores(detector, monkeypatch):
    seen = []
    forward = type(detector.network).forward
    monkeypatch.setattr(type(detector.network), "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    known = Known(detector, in_batches(*TRAIN), in_batches(*images(60, seed=3)))
    batch = Seen(known.detector, SEEN)
    for name in ("knn", "vim", "she", "react", "fdbd", "kl_matching"):
        fitted_to_known(name, known)(batch)
    assert sum(seen) == 150 + 60 + 20
