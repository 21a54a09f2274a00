"""Region-wise guidance, equations (3)-(7): a pure function of three predictions, the same for every family."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

MASK_GRANULARITIES = ("channel", "all", "spatial")


class SONAGuidance(NamedTuple):
    """What `sona_guidance` returns; every field has the shape `[B, C, H, W]` of its inputs.

    Attributes:
        guidance: Delta_SONA of (4), in the units and the dtype of the noise estimates, not yet scaled by s.
        id_semantic_mask: M_S(c_ID) of (3), bool.
        id_nuisance_mask: M_N(c_ID) of (3), bool.
        ood_semantic_mask: M_S(c_OOD) of (3), without M_N(c_ID) where the filter of (7) is on, bool.
        ood_unfiltered_mask: M_S(c_OOD) of (3), bool.
    """

    guidance: torch.Tensor
    id_semantic_mask: torch.Tensor
    id_nuisance_mask: torch.Tensor
    ood_semantic_mask: torch.Tensor
    ood_unfiltered_mask: torch.Tensor


def sona_guidance(
    noise_uncond: torch.Tensor,
    noise_id: torch.Tensor,
    noise_ood: torch.Tensor,
    *,
    mask_threshold: float = 0.2,
    mask_granularity: str = "channel",
    remove_id_semantics: bool = True,
    preserve_id_nuisance: bool = True,
    add_ood_semantics: bool = True,
    filter_ood_by_nuisance: bool = True,
    global_guidance: bool = False,
) -> SONAGuidance:
    r"""SONA guidance, equations (3)-(7), of a batch of noise estimates.

    With psi(c) = noise(c) - noise_uncond, and M_S / M_N the top / bottom share lambda of |psi|:

        D_ID  = -M_S(ID) psi(ID)
        D_N   =  M_N(ID) psi(ID)
        D_OOD =  M_S(OOD) (1 - M_N(ID)) psi(OOD)
        guidance = D_ID + D_N + D_OOD

    Args:
        noise_uncond, noise_id, noise_ood: noise estimates `[B, C, H, W]` for the empty, the ID and the OOD prompt.
        mask_threshold: lambda, the share of a region, in (0, 0.5). A mask holds the nearest whole number of entries,
            at least one; of equal magnitudes the ones that come first in memory count as smaller.
        mask_granularity: what the share is taken over: "channel" (H x W of each channel), "all" (C x H x W), or
            "spatial" (one H x W mask for all channels, from the sum of |psi| over them).
        remove_id_semantics: add D_ID.
        preserve_id_nuisance: add D_N.
        add_ood_semantics: add D_OOD.
        filter_ood_by_nuisance: the factor (1 - M_N(ID)) in D_OOD.
        global_guidance: psi(OOD) everywhere instead (classifier-free guidance, the baseline of figure 6); the masks
            are then empty for ID and full for OOD.

    Magnitudes are compared in float32. Where psi is zero everywhere, its masks are empty.

    Raises:
        ValueError: `mask_threshold` or `mask_granularity` is not one of the above.
    """
    check_mask_options(mask_threshold, mask_granularity)
    psi_id = noise_id.float() - noise_uncond.float()
    psi_ood = noise_ood.float() - noise_uncond.float()
    if global_guidance:
        nothing = torch.zeros_like(psi_ood, dtype=torch.bool)
        return SONAGuidance(psi_ood.to(noise_uncond.dtype), nothing, nothing, ~nothing, ~nothing)

    id_semantic, id_nuisance = region_masks(psi_id, mask_threshold, mask_granularity)
    ood_unfiltered, _ = region_masks(psi_ood, mask_threshold, mask_granularity)
    ood_semantic = ood_unfiltered & ~id_nuisance if filter_ood_by_nuisance else ood_unfiltered

    guidance = torch.zeros_like(psi_id)
    if remove_id_semantics:
        guidance = guidance - id_semantic * psi_id
    if preserve_id_nuisance:
        guidance = guidance + id_nuisance * psi_id
    if add_ood_semantics:
        guidance = guidance + ood_semantic * psi_ood
    return SONAGuidance(guidance.to(noise_uncond.dtype), id_semantic, id_nuisance, ood_semantic, ood_unfiltered)


def region_masks(psi: torch.Tensor, threshold: float, granularity: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Top and bottom share of |psi| `[B, C, H, W]` as two disjoint bool masks of the same shape (3)."""
    magnitude = psi.abs()
    if granularity == "spatial":
        magnitude = magnitude.sum(dim=1, keepdim=True)
    flat = magnitude.flatten(1 if granularity == "all" else 2)
    size = flat.shape[-1]
    count = min(max(1, round(threshold * size)), size // 2)
    order = flat.argsort(dim=-1, stable=True)
    present = (flat.amax(dim=-1, keepdim=True) > 0).expand_as(flat)
    empty = torch.zeros_like(present)
    semantic = empty.scatter(-1, order[..., size - count :], present)
    nuisance = empty.scatter(-1, order[..., :count], present)
    return semantic.view_as(magnitude).expand_as(psi), nuisance.view_as(magnitude).expand_as(psi)


def add_momentum(
    guidance: torch.Tensor, momentum: torch.Tensor, mask: torch.Tensor, *, scale: float, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """SEGA's momentum (Brack et al. 2023), kept inside `mask`: the guidance to apply, and the momentum to carry on.

    guidance' = guidance + scale * mask * momentum;  momentum' = beta * momentum + (1 - beta) * guidance'
    """
    guidance = guidance + scale * mask * momentum
    return guidance, beta * momentum + (1 - beta) * guidance


def check_mask_options(threshold: float, granularity: str) -> None:
    """Raise ValueError unless `sona_guidance` can work with these."""
    if not isinstance(threshold, (int, float, np.number)) or not 0 < threshold < 0.5:
        raise ValueError(
            f"`mask_threshold` is {threshold!r}, but a share of the entries strictly between 0 and 0.5 is needed."
        )
    if granularity not in MASK_GRANULARITIES:
        raise ValueError(f"`mask_granularity` is {granularity!r}, but has to be one of {MASK_GRANULARITIES}.")
