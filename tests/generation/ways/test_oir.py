import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sona_pipeline import sample
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.generation.ways.oir import OIR, _scaled


@pytest.mark.parametrize(("steps", "depths"), [(50, list(range(5, 51, 5))), (4, [1, 2, 3, 4]), (1, [1])])
def test_ten_depths_of_any_schedule(steps, depths):
    assert OIR._depths(steps) == depths


def test_scores_are_scaled_over_the_depths_of_each_image():
    scores = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])
    assert _scaled(scores).tolist() == [[0, 0], [1, 0], [0.5, 0]]


@torch.no_grad()
def test_the_chosen_edit_is_that_of_a_slow_reference(pipe):
    """Inverted by hand, edited by diffusers' scheduler, judged within two fifths of the places and outside of them."""
    steps = 4
    settings = GenerationSettings(("bag", "sandal"), way="oir", num_inference_steps=steps)
    maker = OutlierMaker(pipe, plan_outliers(sample.id_images("train").take([0, 400]), settings))
    work = maker.encode(maker.read(maker.plan.batch(np.arange(1))))
    source, state = work.source_latents, work.generators[0].get_state()
    (own,), (other,) = maker.prompts_of(work.items)
    tokens = pipe.tokenizer(["", own, other], padding="max_length", truncation=True, return_tensors="pt").input_ids
    texts = dict(zip(("", own, other), pipe.text_encoder(tokens)[0][:, None]))
    found = maker.denoise(work)

    down = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    down.set_timesteps(steps)

    def noise(latents, t, text):
        return pipe.unet(latents, t, encoder_hidden_states=texts[text]).sample

    inverted, signal, seen = [source], 1.0, down.timesteps[-1]
    for t in reversed(down.timesteps):
        predicted = noise(inverted[-1], seen, own)
        image = (inverted[-1] - (1 - signal) ** 0.5 * predicted) / signal**0.5
        signal, seen = down.alphas_cumprod[t].item(), t
        inverted.append(signal**0.5 * image + (1 - signal) ** 0.5 * predicted)
    t = down.timesteps[-2]
    says = (noise(inverted[2], t, own) - noise(inverted[2], t, "")).abs().sum(dim=1).flatten()
    mask = torch.zeros(len(says), dtype=torch.bool)
    mask[says.argsort(descending=True)[: round(0.4 * len(says))]] = True
    mask = mask.view(1, 1, *source.shape[2:]).expand_as(source)
    probes = torch.randn(4, *source.shape[1:], generator=torch.Generator().set_state(state))
    signal = down.alphas_cumprod[t]
    edits, gains, changes = [], [], []
    for depth in (1, 2, 3, 4):
        edit = inverted[depth]
        for at in down.timesteps[-depth:]:
            plain = noise(edit, at, "")
            edit = down.step(plain + 7.5 * (noise(edit, at, other) - plain), at, edit).prev_sample
        gain = 0.0
        for probe in probes:
            noised = signal.sqrt() * edit + (1 - signal).sqrt() * probe
            errors = [(noise(noised, t, text) - probe)[mask].square().sum().item() for text in ("", other)]
            gain += errors[0] - errors[1]
        edits.append(edit)
        gains.append(gain)
        changes.append(-(edit - source)[~mask].square().sum().item())
    scores = sum((np.array(part) - min(part)) / (max(part) - min(part)) for part in (gains, changes))
    best = int(scores.argmax())
    assert found.items[0].stop_step == best + 1
    assert torch.allclose(found.outlier_latents, edits[best], atol=1e-3)
