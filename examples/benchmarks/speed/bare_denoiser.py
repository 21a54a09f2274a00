"""The calls of a denoiser that some work makes, with nothing around them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


class BareDenoiser:
    """The calls that some work makes, recorded once and made again.

    Rows, shapes, strides and dtypes are those of the work. Calls that are alike in these share their values, which the
    time does not depend on, so that little is kept.

    Args:
        denoiser: called by the work, with the rows of latents as the first argument.
        work: is run once.
    """

    def __init__(self, denoiser: torch.nn.Module, work: Callable[[], object]):
        self.denoiser, self.calls, self._inputs = denoiser, [], {}
        hook = denoiser.register_forward_pre_hook(self._record, with_kwargs=True)
        try:
            work()
        finally:
            hook.remove()

    def _record(self, denoiser: torch.nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        form = tuple(
            (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in tree_leaves((arguments, named))
        )
        self.calls.append(self._inputs.setdefault(form, (arguments, named)))

    @property
    def rows(self) -> int:
        """Rows of all calls."""
        return sum(len(next(iter((*arguments, *named.values())))) for arguments, named in self.calls)

    @torch.no_grad()
    def __call__(self) -> None:
        """Make the calls again."""
        for arguments, named in self.calls:
            self.denoiser(*arguments, **named)
