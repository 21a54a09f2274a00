"""Scatter matrices in double precision, for Mahalanobis distances.

pytorch-ood inverts them in single precision with 1e-6 on the diagonal. With features that are always zero, or with
fewer images than features, that is no positive matrix any more, or cannot be inverted at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def double_precision() -> Iterator[None]:
    """Within it, new tensors are of double precision."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
