"""SONAGuider among diffusers' guiders: what it gives, how it is asked, saved and loaded."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from pipelines.families.plain_call import SCALE, guided, regions

from sona_pipeline import SONAGuider

CHANGES = {"guidance_scale": 3.5, "mask_granularity": "spatial", "add_ood_semantics": False, "cooldown_steps": 7}


def predictions(shape=(2, 4, 10, 6)):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))


def at_step(guider, step, steps=10):
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(500))
    return guider(guider.prepare_inputs({"noise_pred": predictions()}))


def test_prediction_and_masks_are_those_of_the_equations():
    by_text = dict(zip(["", "a cat", "a dog"], predictions()))
    expected, (semantic, nuisance, ood) = guided(lambda x, t, text: by_text[text], None, None, "a cat", "a dog")
    found = at_step(SONAGuider(guidance_scale=SCALE), 0)
    torch.testing.assert_close(found.pred, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    for name, mask in (("id_semantic_mask", semantic), ("id_nuisance_mask", nuisance), ("ood_semantic_mask", ood)):
        assert torch.equal(found[name], mask)
    assert torch.equal(found.ood_unfiltered_mask, regions(by_text["a dog"] - by_text[""])[0])
    assert torch.equal(found.pred_uncond, by_text[""]) and torch.equal(found.pred_cond, by_text["a cat"])


def test_no_guidance_in_warm_up_and_cool_down_and_when_disabled():
    guider = SONAGuider(warmup_steps=2, cooldown_steps=5)
    is_plain = [torch.equal(at_step(guider, step).pred, predictions()[0]) for step in range(7)]
    assert is_plain == [True, True, False, False, False, True, True]
    guider.disable()
    off = at_step(guider, 3)
    assert torch.equal(off.pred, predictions()[0]) and off.id_semantic_mask.any() and not off.guidance.any()


def test_each_prediction_takes_its_own_of_a_tuple_and_shares_a_tensor():
    shared, own = torch.zeros(1), (torch.ones(1), torch.ones(2), torch.ones(3))
    guider = SONAGuider()
    state = BlockState(latents=shared, a=own[0], b=own[1], c=own[2])
    for parts in (
        guider.prepare_inputs({"latents": shared, "embeds": own}),
        guider.prepare_inputs_from_block_state(state, {"latents": "latents", "embeds": ("a", "b", "c")}),
    ):
        assert [part.latents is shared for part in parts] == [True] * guider.num_conditions
        assert [len(part.embeds) for part in parts] == [1, 2, 3]


def test_prompts_come_after_the_empty_one():
    guider, has_prompt = SONAGuider(), []
    guider.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(500))
    for _ in range(guider.num_conditions):
        guider.prepare_models(SimpleNamespace())
        has_prompt.append(guider.is_conditional)
    assert has_prompt == [False, True, True]


def test_settings_are_saved_loaded_and_changed_in_copies(tmp_path):
    guider = SONAGuider(**CHANGES)
    guider.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "guider_config.json").read_text())
    assert {name: saved[name] for name in CHANGES} == CHANGES
    for loaded in (SONAGuider.from_pretrained(tmp_path), guider.new()):
        assert {name: loaded.config[name] for name in CHANGES} == CHANGES and loaded.regions == guider.regions
        assert torch.equal(at_step(loaded, 3).pred, at_step(guider, 3).pred)
    assert guider.new(guidance_scale=1.0).config.guidance_scale == 1.0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_threshold": 0.5}, "`mask_threshold` is 0.5"),
        ({"mask_granularity": "pixel"}, "`mask_granularity` is 'pixel'"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` is nan"),
        ({"warmup_steps": -1}, "`warmup_steps` is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SONAGuider(**options)
