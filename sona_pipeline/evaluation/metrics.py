"""Metrics of out-of-distribution detection, by the conventions of OpenOOD."""

import numpy as np
from sklearn import metrics


def ood_metrics(id_scores: np.ndarray, ood_scores: np.ndarray) -> dict[str, float]:
    """How well scores tell OOD images (higher) from ID images (lower), in percent.

    `auroc`; `fpr95`: share of ID images flagged when 95 % of the OOD images are (OOD is the positive class, as in
    OpenOOD, and as there read off scikit-learn's curve, which leaves out points on a straight line); `aupr_in` and
    `aupr_out`: area under the precision-recall curve with ID and OOD as positive class, by the trapezoidal rule.

    Args:
        id_scores: of the ID images, `[N]`.
        ood_scores: of the OOD images, `[M]`.

    Raises:
        ValueError: one of the two is empty, or holds a value that is not finite.
    """
    id_scores, ood_scores = np.asarray(id_scores, dtype=np.float64), np.asarray(ood_scores, dtype=np.float64)
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if not scores.size or not np.isfinite(scores).all():
            count = (~np.isfinite(scores)).sum()
            raise ValueError(f"{name} has {scores.size} values, {count} of them not finite: cannot be ranked")
    scores = np.concatenate([id_scores, ood_scores])
    is_ood = np.concatenate([np.zeros(len(id_scores)), np.ones(len(ood_scores))])
    fpr, tpr, _ = metrics.roc_curve(is_ood, scores)
    precision_in, recall_in, _ = metrics.precision_recall_curve(1 - is_ood, -scores)
    precision_out, recall_out, _ = metrics.precision_recall_curve(is_ood, scores)
    return {
        "auroc": 100 * float(metrics.auc(fpr, tpr)),
        "fpr95": 100 * float(fpr[np.argmax(tpr >= 0.95)]),
        "aupr_in": 100 * float(metrics.auc(recall_in, precision_in)),
        "aupr_out": 100 * float(metrics.auc(recall_out, precision_out)),
    }
