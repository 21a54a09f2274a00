"""What families of flow models are asked: outliers as by the plain loop, alone as in a batch, half denoisers."""

import torch
from plain_call import STEPS, flow_outlier, rows_of

STOPS = [3, 6, 1]
IDS, OODS = ["a cat", "a barn", "a cat"], ["a dog", "a plane", "a red car on a wide road"]
MASKS = ["id_semantic_mask", "id_nuisance_mask", "ood_semantic_mask"]
OFF = {"remove_id_semantics": False, "preserve_id_nuisance": False, "add_ood_semantics": False}


def generators(count=3):
    """One for each image."""
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def latents_of(pipe, count=3, height=4, width=6):
    """Latents of images that are no squares."""
    shape = (count, pipe.latent_channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def outliers(pipe, latents, **changes):
    """What a call makes of latents."""
    settings = {"stop_step": STOPS, "num_inference_steps": STEPS, "output_type": "latent", "generator": generators()}
    return pipe(latents, **{"id_prompt": IDS, "ood_prompt": OODS} | settings | changes).images


def hold_against_the_plain_loop(pipe, predict, sigmas, tolerance=1e-5):
    """Latents, masks of every step and rows of every call of a batch are those of the plain loop."""
    latents, seen = latents_of(pipe), []

    def note(_, step, t, tensors):
        assert abs(float(t) / 1000 - sigmas[step]) < 1e-6
        seen.append(tensors)
        return {}

    with rows_of(pipe.denoiser) as rows:
        asked = {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": MASKS}
        made = outliers(pipe, latents, **asked)
    assert rows == [3 * sum(stop >= left for stop in STOPS) for left in range(STEPS, 0, -1)]
    for k, generator in enumerate(generators()):
        noise = torch.randn(latents[k : k + 1].shape, generator=generator, dtype=torch.float64)
        wanted, masks = flow_outlier(predict, latents[k : k + 1], noise, sigmas, STOPS[k], IDS[k], OODS[k])
        torch.testing.assert_close(made[k : k + 1], wanted, atol=tolerance, rtol=0)
        assert (wanted - latents[k : k + 1]).abs().max() > 0.1 * sigmas[-STOPS[k] - 1]
        for tensors, found in zip(seen[STEPS - STOPS[k] :], masks, strict=True):
            for name, mask in zip(MASKS, found, strict=True):
                assert torch.equal(tensors[name][k : k + 1], mask)
                assert mask.any() or name == "ood_semantic_mask"


def hold_alone_as_in_a_batch(pipe, tolerance=1e-6):
    """An image gets the same outlier whatever else is in the call."""
    latents = latents_of(pipe)
    together = outliers(pipe, latents)
    for k, generator in enumerate(generators()):
        own = {"id_prompt": IDS[k], "ood_prompt": OODS[k], "stop_step": STOPS[k], "generator": generator}
        alone = outliers(pipe, latents[k : k + 1], **own)
        torch.testing.assert_close(alone, together[k : k + 1], atol=tolerance, rtol=0)


def hold_half(pipe, half=torch.bfloat16):
    """A half denoiser is given rows in its dtype, and latents stay float32."""
    latents, seen, given = latents_of(pipe), [], []
    pipe.to(half)

    def note(module, arguments, named):
        rows = arguments[0] if arguments else next(iter(named.values()))
        given.append({row.dtype for row in rows})

    pipe.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    asked = {"callback_on_step_end": lambda pipe, step, t, tensors: seen.append(tensors)}
    made = outliers(pipe, latents, **asked, callback_on_step_end_tensor_inputs=["latents", "noise_pred", "guidance"])
    assert {value.dtype for tensors in seen for value in tensors.values()} == {torch.float32} == {made.dtype}
    assert given == [{half}] * STEPS
    assert made.isfinite().all()
    assert not torch.equal(made, made.to(half).float())


def order_of_use(pipe, image):
    """Names of the models in the order in which a call is done with them."""
    used, models = [], {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    for name, model in models.items():
        last = model.decoder if name == "vae" else model
        last.register_forward_hook(lambda *args, name=name: used.append(name))
    pipe(image, "a cat", "a dog", stop_step=1, num_inference_steps=2, output_type="pt")
    return list(dict.fromkeys(used))
