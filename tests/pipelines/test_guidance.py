import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sona_pipeline.pipelines.guidance import MASK_GRANULARITIES, add_momentum, sona_guidance

SWITCHES = ("remove_id_semantics", "preserve_id_nuisance", "add_ood_semantics", "filter_ood_by_nuisance")
granularities = pytest.mark.parametrize("granularity", MASK_GRANULARITIES)


def noises(seed, shape=(2, 3, 4, 5), levels=None, dtype=torch.float32):
    """Three noise estimates; with `levels`, of so few different values that most magnitudes are tied."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        return [torch.randint(-levels, levels + 1, shape, generator=generator).to(dtype) / 4 for _ in range(3)]
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def regions(shape, granularity):
    """The entries, as [(c, y, x), ...] groups in memory order, that share a mask decision, region by region."""
    channels, height, width = shape
    pixels = list(itertools.product(range(height), range(width)))
    single = [[[(c, y, x)] for y, x in pixels] for c in range(channels)]
    if granularity == "channel":
        return single
    if granularity == "all":
        return [list(itertools.chain(*single))]
    return [[[(c, y, x) for c in range(channels)] for y, x in pixels]]


def share(threshold, size):
    return min(max(1, round(threshold * size)), size // 2)


def slow_masks(psi, threshold, granularity):
    """Sets of the entries (c, y, x) of one image in the top and in the bottom share."""
    top, bottom = set(), set()
    for groups in regions(psi.shape, granularity):
        magnitudes = [sum(abs(psi[entry].item()) for entry in group) for group in groups]
        if max(magnitudes) == 0:
            continue
        count = share(threshold, len(groups))
        ranked = sorted(range(len(groups)), key=lambda k: (magnitudes[k], k))
        bottom |= {entry for k in ranked[:count] for entry in groups[k]}
        top |= {entry for k in ranked[-count:] for entry in groups[k]}
    return top, bottom


OUTPUTS = ("guidance", "S_ID", "N_ID", "S_OOD", "S_OOD before the filter")


def slow_guidance(uncond, noise_id, noise_ood, threshold, granularity, remove, preserve, add, filtered):
    """Equations (3) to (7), entry by entry in float64."""
    out = {name: torch.zeros(uncond.shape, dtype=torch.float64) for name in OUTPUTS}
    for k in range(len(uncond)):
        psi_id, psi_ood = noise_id[k].double() - uncond[k].double(), noise_ood[k].double() - uncond[k].double()
        id_top, id_bottom = slow_masks(psi_id, threshold, granularity)
        ood_top, _ = slow_masks(psi_ood, threshold, granularity)
        for entry in itertools.product(*map(range, psi_id.shape)):
            in_ood = entry in ood_top and not (filtered and entry in id_bottom)
            total = 0.0
            if remove and entry in id_top:
                total -= psi_id[entry].item()
            if preserve and entry in id_bottom:
                total += psi_id[entry].item()
            if add and in_ood:
                total += psi_ood[entry].item()
            out["guidance"][(k, *entry)] = total
            out["S_ID"][(k, *entry)] = entry in id_top
            out["N_ID"][(k, *entry)] = entry in id_bottom
            out["S_OOD"][(k, *entry)] = in_ood
            out["S_OOD before the filter"][(k, *entry)] = entry in ood_top
    return out["guidance"], *(out[name].bool() for name in OUTPUTS[1:])


def assert_same(found, wanted):
    for name, left, right in zip(found._fields, found, wanted):
        torch.testing.assert_close(left, right.to(left.dtype), msg=lambda text, name=name: f"{name}: {text}")


@granularities
@pytest.mark.parametrize("switches", list(itertools.product([True, False], repeat=4)))
@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "tied"])
def test_agrees_with_the_equations_entry_by_entry(granularity, switches, levels):
    inputs = noises(0, levels=levels)
    found = sona_guidance(
        *inputs, mask_threshold=0.3, mask_granularity=granularity, **dict(zip(SWITCHES, switches, strict=True))
    )
    assert_same(found, slow_guidance(*inputs, 0.3, granularity, *switches))


@granularities
@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.25, 0.499])
def test_agrees_with_the_equations_at_other_thresholds(granularity, threshold):
    inputs = noises(1)
    found = sona_guidance(*inputs, mask_threshold=threshold, mask_granularity=granularity)
    assert_same(found, slow_guidance(*inputs, threshold, granularity, True, True, True, True))


def test_defaults_are_a_fifth_of_each_channel_and_every_term():
    inputs = noises(2)
    assert_same(sona_guidance(*inputs), slow_guidance(*inputs, 0.2, "channel", True, True, True, True))


def test_worked_example():
    uncond = torch.full((1, 1, 1, 5), 2.0)
    psi_id, psi_ood = torch.tensor([5.0, -1, 3, -7, 2]), torch.tensor([1.0, 9, -2, 4, -6])
    found = sona_guidance(uncond, uncond + psi_id, uncond + psi_ood, mask_threshold=0.4)
    # |psi_ID| ranks 1 (-1), 2 (2) lowest and 5, 7 highest; |psi_OOD| has 9 and 6 highest, both in the nuisance of ID.
    assert found.id_semantic_mask.flatten().tolist() == [True, False, False, True, False]
    assert found.id_nuisance_mask.flatten().tolist() == [False, True, False, False, True]
    assert found.ood_semantic_mask.flatten().tolist() == [False] * 5
    assert found.guidance.flatten().tolist() == [-5, -1, 0, 7, 2]
    unfiltered = sona_guidance(
        uncond, uncond + psi_id, uncond + psi_ood, mask_threshold=0.4, filter_ood_by_nuisance=False
    )
    assert unfiltered.guidance.flatten().tolist() == [-5, 8, 0, 7, -4]


@granularities
def test_of_equal_magnitudes_the_first_in_memory_count_as_smaller(granularity):
    uncond = torch.zeros(1, 2, 2, 5)
    signs = torch.tensor([1.0, -1.0]).repeat(10).view(1, 2, 2, 5)
    found = sona_guidance(uncond, signs, signs, mask_granularity=granularity)
    size, count = (20, 4) if granularity == "all" else (10, 2)
    rank = torch.arange(size).repeat(20 // size, 1)
    assert torch.equal(found.id_nuisance_mask.reshape(-1, size), rank < count)
    assert torch.equal(found.id_semantic_mask.reshape(-1, size), rank >= size - count)


def test_global_guidance_is_psi_of_the_ood_prompt_everywhere():
    uncond, noise_id, noise_ood = noises(3)
    found = sona_guidance(uncond, noise_id, noise_ood, global_guidance=True, add_ood_semantics=False)
    torch.testing.assert_close(found.guidance, noise_ood - uncond)
    assert not found.id_semantic_mask.any() and not found.id_nuisance_mask.any()
    assert found.ood_semantic_mask.dtype == torch.bool and found.ood_semantic_mask.all()


@granularities
def test_filter_takes_the_nuisance_of_id_out_of_the_ood_term(granularity):
    uncond, noise_id, _ = noises(4)
    psi = noise_id - uncond
    noise_ood = uncond + 1 / psi  # large where psi is small: the top of OOD is the bottom of ID
    options = {"mask_granularity": granularity, "remove_id_semantics": False, "preserve_id_nuisance": False}
    if granularity == "spatial":
        noise_ood = uncond + 1 / psi.abs().sum(dim=1, keepdim=True)
    free = sona_guidance(uncond, noise_id, noise_ood, filter_ood_by_nuisance=False, **options)
    assert torch.equal(free.ood_semantic_mask, free.id_nuisance_mask) and free.guidance.any()
    filtered = sona_guidance(uncond, noise_id, noise_ood, **options)
    assert not filtered.ood_semantic_mask.any() and not filtered.guidance.any()
    assert torch.equal(filtered.ood_unfiltered_mask, free.ood_semantic_mask)


@granularities
def test_masks_of_a_zero_psi_are_empty_and_leave_other_images_alone(granularity):
    uncond, noise_id, noise_ood = noises(5)
    noise_id[0], noise_ood[1] = uncond[0], uncond[1]
    found = sona_guidance(uncond, noise_id, noise_ood, mask_granularity=granularity)
    assert not found.id_semantic_mask[0].any() and not found.id_nuisance_mask[0].any()
    assert not found.ood_semantic_mask[1].any()
    assert found.id_semantic_mask[1].any() and found.id_nuisance_mask[1].any() and found.ood_semantic_mask[0].any()


def test_a_zero_channel_has_empty_masks_of_its_own():
    uncond, noise_id, noise_ood = noises(6)
    noise_id[0, 1] = uncond[0, 1]
    found = sona_guidance(uncond, noise_id, noise_ood)
    assert found.id_semantic_mask.sum(dim=(2, 3)).tolist() == [[4, 0, 4], [4, 4, 4]]


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
cases = {
    "seed": st.integers(0, 2**20),
    "shape": shapes,
    "threshold": st.floats(1e-6, 0.5, exclude_max=True),
    "granularity": st.sampled_from(MASK_GRANULARITIES),
    "levels": st.sampled_from([None, 1, 4]),
}
some_examples = settings(max_examples=60, deadline=None, derandomize=True)


@some_examples
@given(**cases, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_masks_are_disjoint_and_hold_the_exact_share(seed, shape, threshold, granularity, levels, dtype):
    uncond, noise_id, noise_ood = noises(seed, shape, levels, dtype)
    found = sona_guidance(
        uncond,
        noise_id,
        noise_ood,
        mask_threshold=threshold,
        mask_granularity=granularity,
        filter_ood_by_nuisance=False,
    )
    _, channels, height, width = shape
    assert not (found.id_semantic_mask & found.id_nuisance_mask).any()
    for mask, noise in zip(found[1:], (noise_id, noise_id, noise_ood, noise_ood), strict=True):
        assert mask.shape == shape and mask.dtype == torch.bool
        moved = noise.float() != uncond.float()
        if granularity == "channel":
            size, counts, present = height * width, mask.sum(dim=(2, 3)), moved.any(dim=3).any(dim=2)
        elif granularity == "all":
            size, counts, present = channels * height * width, mask.sum(dim=(1, 2, 3)), moved.flatten(1).any(dim=1)
        else:
            assert torch.equal(mask, mask[:, :1].expand_as(mask))
            size, counts, present = height * width, mask[:, 0].sum(dim=(1, 2)), moved.flatten(1).any(dim=1)
        assert torch.equal(counts, share(threshold, size) * present)
    assert found.guidance.dtype == dtype and found.guidance.shape == shape


@some_examples
@given(**cases, power=st.integers(-12, 12), sign=st.sampled_from([1, -1]))
def test_masks_ignore_the_units_and_the_sign_of_predictions(seed, shape, threshold, granularity, levels, power, sign):
    """Velocity and sample predictions differ from noise by a factor, negative for samples, at each time step."""
    inputs, factor = noises(seed, shape, levels), sign * 2.0**power
    options = {"mask_threshold": threshold, "mask_granularity": granularity}
    found, scaled = sona_guidance(*inputs, **options), sona_guidance(*(factor * one for one in inputs), **options)
    assert all(torch.equal(left, right) for left, right in zip(found[1:], scaled[1:], strict=True))
    assert torch.equal(scaled.guidance, factor * found.guidance)


@some_examples
@given(**cases)
def test_an_image_does_not_depend_on_its_batch(seed, shape, threshold, granularity, levels):
    inputs, options = noises(seed, shape, levels), {"mask_threshold": threshold, "mask_granularity": granularity}
    together = sona_guidance(*inputs, **options)
    for k in range(shape[0]):
        alone = sona_guidance(*(one[k : k + 1] for one in inputs), **options)
        assert all(torch.equal(left[k : k + 1], right) for left, right in zip(together, alone, strict=True))


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
@granularities
def test_memory_layout_of_the_inputs_does_not_matter(granularity, layout):
    inputs = noises(7, (2, 4, 6, 5), levels=2)
    strange = [
        one.to(memory_format=torch.channels_last)
        if layout == "channels_last"
        else one.transpose(2, 3).contiguous().transpose(2, 3)
        for one in inputs
    ]
    plain, other = (
        sona_guidance(*inputs, mask_granularity=granularity),
        sona_guidance(*strange, mask_granularity=granularity),
    )
    assert all(torch.equal(left, right) for left, right in zip(plain, other, strict=True))


def test_inputs_are_left_as_they_were():
    inputs = noises(8)
    before = [one.clone() for one in inputs]
    sona_guidance(*inputs)
    assert all(torch.equal(left, right) for left, right in zip(inputs, before, strict=True))


@granularities
@pytest.mark.parametrize("global_guidance", [False, True])
def test_nothing_waits_for_the_values_on_the_device(granularity, global_guidance):
    # Meta tensors have no values: .item(), .tolist(), .cpu() and branches on them raise.
    inputs = [torch.empty(3, 4, 8, 8, device="meta", dtype=torch.float16) for _ in range(3)]
    found = sona_guidance(*inputs, mask_granularity=granularity, global_guidance=global_guidance)
    assert found.guidance.dtype == torch.float16
    momentum = torch.zeros(3, 4, 8, 8, device="meta")
    moved = add_momentum(found.guidance, momentum, found.id_semantic_mask, scale=0.3, beta=0.4)
    assert {one.device.type for one in (*found, *moved)} == {"meta"}


@pytest.mark.parametrize("threshold", [0, 0.0, 0.5, 0.8, -0.2, 1, float("nan")])
def test_threshold_outside_0_to_a_half_is_an_error(threshold):
    with pytest.raises(ValueError, match=rf"`mask_threshold` is {threshold}, .* strictly between 0 and 0\.5"):
        sona_guidance(*noises(0), mask_threshold=threshold)


@pytest.mark.parametrize("global_guidance", [False, True])
def test_unknown_granularity_is_an_error(global_guidance):
    with pytest.raises(ValueError, match=r"`mask_granularity` is 'pixel', but has to be one of .*'spatial'"):
        sona_guidance(*noises(0), mask_granularity="pixel", global_guidance=global_guidance)


def test_momentum_worked_example():
    mask = torch.tensor([True, False, True])
    applied, momentum = add_momentum(
        torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.5, 8.0, 4.0]), mask, scale=0.2, beta=0.75
    )
    torch.testing.assert_close(applied, torch.tensor([1.1, 0.0, -1.2]))
    torch.testing.assert_close(momentum, torch.tensor([0.65, 6.0, 2.7]))
