import re

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline
from sona_pipeline.pipelines.guidance import add_momentum, sona_guidance

# diffusers' schedulers and NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

T = 10
STOPS = [2, 5, 1, 5]
HEIGHT, WIDTH = 24, 32
MASKS = ("id_semantic_mask", "id_nuisance_mask", "ood_semantic_mask", "ood_unfiltered_mask")
NAMES = ("latents", *MASKS, "noise_pred", "guidance")
SCHEDULERS = [
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    HeunDiscreteScheduler,
]
all_schedulers = pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda one: one.__name__)
prediction_types = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])


def pictures():
    return torch.rand(4, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def seeds(count=4):
    return [torch.Generator().manual_seed(100 + k) for k in range(count)]


def arguments(**changes):
    """Arguments of a call on four images with prompts and stop steps of their own, to latents."""
    return {
        "image": pictures(),
        "id_prompt": ["a cat", "a dog", "a barn", "a cat"],
        "ood_prompt": ["a dog", "a ship", "a hat", "a cup"],
        "stop_step": STOPS,
        "num_inference_steps": T,
        "generator": seeds(),
        "output_type": "latent",
    } | changes


def pick(order, **changes):
    """The same arguments for some of the images, in this order."""
    given = arguments(**changes)
    return {
        name: value[order]
        if torch.is_tensor(value)
        else [value[k] for k in order]
        if isinstance(value, list)
        else value
        for name, value in given.items()
    }


def embed(pipe, *texts):
    ids = pipe.tokenizer(list(texts), padding="max_length", max_length=16, return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0]


def record(pipe, names=NAMES, **changes):
    """What a callback sees: a list of (step, timestep, tensors)."""
    seen = []
    pipe(
        **arguments(**changes),
        callback_on_step_end=lambda _, step, t, tensors: seen.append((step, int(t), tensors)) or {},
        callback_on_step_end_tensor_inputs=names,
    )
    return seen


def count_rows(module):
    """Rows of the calls of a module, as a list that grows."""
    rows = []
    module.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(args[0])), with_kwargs=True)
    return rows


def close(left, right, tolerance=1e-5):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


# Algorithm 2, one image at a time


def ddim(scheduler, x, prediction, t):
    """The update of DDIM without noise (eta = 0), on a schedule of its own making."""
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    a, a_prev = alphas[t], alphas[max(t - 1000 // T, 0)]
    noise = to_noise(scheduler.config.prediction_type, x, prediction, a.sqrt(), (1 - a).sqrt())
    x0 = (x - (1 - a).sqrt() * noise) / a.sqrt()
    return a_prev.sqrt() * x0 + (1 - a_prev).sqrt() * noise


def to_noise(kind, x, output, a, b):
    return {"epsilon": output, "v_prediction": a * output + b * x, "sample": (x - a * output) / b}[kind]


def from_noise(kind, x, noise, a, b):
    return {"epsilon": noise, "v_prediction": (noise - b * x) / a, "sample": (x - b * noise) / a}[kind]


def algorithm_2(pipe, k, update=None, *, scale=10.0, latents=None, eta=0.0, momentum=None, **regions):
    """The outlier of image k of `arguments()`, with guidance in units of noise whatever the UNet predicts."""
    given, generator = arguments(), seeds()[k]
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    if latents is None:
        latents = pipe.vae.encode(2 * given["image"][k : k + 1] - 1).latent_dist.sample(generator)
        latents = latents * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
    prompts = embed(pipe, "", given["id_prompt"][k], given["ood_prompt"][k])
    scheduler.set_timesteps(T)
    start = (T - STOPS[k]) * scheduler.order
    x = scheduler.add_noise(latents, noise, scheduler.timesteps[start : start + 1])
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    extra = {DDIMScheduler: {"eta": eta, "generator": generator}}.get(type(scheduler), {})
    if type(scheduler) in (DDPMScheduler, EulerAncestralDiscreteScheduler):
        extra = {"generator": generator}
    carried, kind = torch.zeros_like(x), scheduler.config.prediction_type
    for t in scheduler.timesteps[start:]:
        seen = scheduler.scale_model_input(x, t)
        alpha = scheduler.alphas_cumprod[int(t)].double()
        a, b = alpha.sqrt(), (1 - alpha).sqrt()
        outputs = (pipe.unet(seen, t, prompt[None])[0] for prompt in prompts)
        uncond, noise_id, noise_ood = (to_noise(kind, seen, output, a, b) for output in outputs)
        guidance, *masks = sona_guidance(uncond, noise_id, noise_ood, **regions)
        if momentum:
            inside = masks[0] | masks[1] | masks[2]
            guidance, carried = add_momentum(guidance, carried, inside, scale=momentum[0], beta=momentum[1])
        prediction = from_noise(kind, seen, uncond + scale * guidance, a, b)
        if update:
            x = update(scheduler, x, prediction, int(t))
        else:
            x = scheduler.step(prediction, t, x.clone(), **extra, return_dict=False)[0]
    return x


def assert_is_algorithm_2(pipe, update=None, reference=None, **changes):
    found = pipe(**arguments(**changes)).images
    for k in range(4):
        # `update` has a noise schedule in float64, the schedulers have theirs in float32.
        close(found[k : k + 1], algorithm_2(pipe, k, update, **reference or {}), 2e-4 if update else 1e-5)


@prediction_types
def test_call_is_algorithm_2_with_ddim_in_closed_form(make_pipe, prediction_type):
    assert_is_algorithm_2(make_pipe(prediction_type=prediction_type), update=ddim)


NO_SAMPLES = (EulerAncestralDiscreteScheduler, HeunDiscreteScheduler)  # in diffusers
KINDS = [(one, kind) for one in SCHEDULERS for kind in ("epsilon", "v_prediction")]
KINDS += [(one, "sample") for one in SCHEDULERS if one not in NO_SAMPLES]


@pytest.mark.parametrize(("scheduler", "prediction_type"), KINDS)
def test_call_is_algorithm_2_with_every_scheduler(make_pipe, scheduler, prediction_type):
    assert_is_algorithm_2(make_pipe(prediction_type=prediction_type, scheduler=scheduler))


@pytest.mark.parametrize(
    "regions",
    [
        {"mask_threshold": 0.4, "mask_granularity": "spatial"},
        {"mask_granularity": "all", "filter_ood_by_nuisance": False},
        {"remove_id_semantics": False, "preserve_id_nuisance": False},
        {"add_ood_semantics": False},
        {"global_guidance": True},
    ],
)
def test_regions_and_scale_are_handed_to_the_guidance(make_pipe, regions):
    assert_is_algorithm_2(make_pipe(), guidance_scale=3.0, **regions, reference={"scale": 3.0, **regions})


@prediction_types
@pytest.mark.parametrize("scheduler", [DDIMScheduler, UniPCMultistepScheduler])
def test_momentum_is_carried_in_units_of_noise_inside_the_masks(make_pipe, scheduler, prediction_type):
    pipe = make_pipe(scheduler=scheduler, prediction_type=prediction_type)
    assert_is_algorithm_2(pipe, momentum_scale=0.5, momentum_beta=0.6, reference={"momentum": (0.5, 0.6)})


def test_eta_draws_from_the_generator_of_the_image(make_pipe):
    assert_is_algorithm_2(make_pipe(), eta=0.8, reference={"eta": 0.8})


def test_tensor_of_latent_channels_is_taken_as_latents(make_pipe, monkeypatch):
    pipe = make_pipe()
    latents = torch.randn(4, 4, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    monkeypatch.setattr(pipe.vae, "encode", lambda *_: pytest.fail("latents were encoded"))
    found = pipe(**arguments(image=latents)).images
    assert torch.equal(found, pipe(**arguments(image=list(latents))).images)
    for k in range(4):
        close(found[k : k + 1], algorithm_2(pipe, k, latents=latents[k : k + 1]))


def test_guidance_changes_the_outlier_and_so_do_both_prompts(make_pipe):
    pipe = make_pipe()
    plain = pipe(**arguments()).images
    for changes in ({"guidance_scale": 0.0}, {"id_prompt": "a lamp"}, {"ood_prompt": "a lamp"}):
        assert ((pipe(**arguments(**changes)).images - plain).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


# diffusers' img2img as a peer


@pytest.mark.parametrize(
    "scheduler",
    [
        *SCHEDULERS,
        diffusers.DEISMultistepScheduler,
        diffusers.DPMSolverSinglestepScheduler,
    ],
    ids=lambda one: one.__name__,
)
def test_global_guidance_is_img2img(make_pipe, scheduler):
    pipe = make_pipe(scheduler=scheduler)
    peer = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    peer.set_progress_bar_config(disable=True)
    common = {"strength": 0.58, "guidance_scale": 7.5, "num_inference_steps": 12, "output_type": "latent"}
    prompts = arguments()["ood_prompt"]
    wanted = peer(prompts, pictures(), generator=seeds(), eta=0.5, **common).images
    found = pipe(pictures(), "a cat", prompts, generator=seeds(), eta=0.5, global_guidance=True, **common).images
    close(found, wanted)


def test_img2img_with_one_generator_for_the_call(make_pipe):
    pipe = make_pipe()
    peer = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    peer.set_progress_bar_config(disable=True)
    common = {"strength": 0.5, "guidance_scale": 7.5, "num_inference_steps": 6, "output_type": "np"}
    wanted = peer(["a hat"] * 4, pictures(), generator=torch.Generator().manual_seed(3), **common).images
    found = pipe(
        pictures(), "a cat", "a hat", generator=torch.Generator().manual_seed(3), global_guidance=True, **common
    ).images
    np.testing.assert_allclose(found, wanted, atol=1e-6)


# Batches


@all_schedulers
def test_outlier_depends_on_nothing_else_in_its_batch(make_pipe, scheduler):
    pipe = make_pipe(scheduler=scheduler)
    together = pipe(**arguments(eta=0.7)).images
    for order in ([3, 1, 0, 2], [2], [0, 3]):
        close(pipe(**pick(order, eta=0.7)).images, together[order])


def test_noise_of_a_stochastic_solver_with_history_comes_from_the_generator_of_the_image(make_pipe):
    pipe = make_pipe()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="sde-dpmsolver++")
    together = pipe(**arguments()).images
    for k in range(4):
        close(pipe(**pick([k])).images, together[[k]])


def test_drawn_stop_steps_depend_on_nothing_else_in_the_batch(make_pipe):
    pipe = make_pipe()
    together = pipe(**arguments(stop_step=None))
    assert len(set(together.stop_steps)) > 1
    apart = pipe(**pick([2, 0], stop_step=None))
    assert apart.stop_steps == [together.stop_steps[2], together.stop_steps[0]]
    close(apart.images, together.images[[2, 0]])


@all_schedulers
def test_unet_sees_three_rows_an_image_and_step(make_pipe, scheduler):
    pipe = make_pipe(scheduler=scheduler)
    rows = count_rows(pipe.unet)
    pipe(**arguments())
    if scheduler is HeunDiscreteScheduler:
        assert sum(rows) == 3 * sum(2 * stop - 1 for stop in STOPS)
    else:
        assert sum(rows) == 3 * sum(STOPS)


@all_schedulers
def test_num_timesteps_counts_the_calls_of_the_unet(make_pipe, scheduler):
    pipe = make_pipe(scheduler=scheduler)
    rows = count_rows(pipe.unet)
    pipe(**arguments())
    assert pipe.num_timesteps == len(rows)


def test_images_join_a_running_batch_where_the_scheduler_has_no_history(make_pipe):
    pipe = make_pipe()
    rows = count_rows(pipe.unet)
    pipe(**arguments())
    assert rows == [6, 6, 6, 9, 12]


def test_text_encoder_is_called_once_with_each_distinct_prompt_once(tiny_pipe):
    rows = count_rows(tiny_pipe.text_encoder)
    ids = []
    tiny_pipe.text_encoder.register_forward_pre_hook(lambda _, args: ids.extend(map(tuple, args[0].tolist())))
    tiny_pipe(**arguments())
    assert rows == [7]  # the empty prompt, cat, dog, barn, ship, hat, cup
    assert len(set(ids)) == 7


def test_prompt_embeddings_replace_prompts(make_pipe):
    pipe = make_pipe()
    given = arguments()
    wanted = pipe(**given).images
    ours = {
        "id_prompt_embeds": embed(pipe, *given["id_prompt"]),
        "ood_prompt_embeds": embed(pipe, *given["ood_prompt"]),
        "uncond_prompt_embeds": embed(pipe, ""),
    }
    some = ours | {"ood_prompt_embeds": None}
    close(pipe(**arguments(id_prompt=None, **some)).images, wanted)
    rows = count_rows(pipe.text_encoder)
    close(pipe(**arguments(id_prompt=None, ood_prompt=None, **ours)).images, wanted)
    assert rows == []


def test_one_prompt_serves_all_images(make_pipe):
    pipe = make_pipe()
    one = pipe(**arguments(id_prompt="a cat", ood_prompt="a hat", stop_step=3)).images
    close(pipe(**arguments(id_prompt=["a cat"] * 4, ood_prompt=["a hat"] * 4, stop_step=[3] * 4)).images, one)


def test_uncond_embeddings_are_used(make_pipe):
    pipe = make_pipe()
    found = pipe(**arguments(guidance_scale=0.0, uncond_prompt_embeds=embed(pipe, "a lamp"))).images
    assert (found - pipe(**arguments(guidance_scale=0.0)).images).abs().max() > 1e-3


def test_clip_skip_leaves_layers_out_for_the_two_prompts_only(make_pipe):
    pipe = make_pipe()

    def skipped(name):
        ids = pipe.tokenizer(arguments()[name], padding="max_length", max_length=16, return_tensors="pt").input_ids
        hidden = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        return torch.nn.functional.layer_norm(hidden, (16,))  # the norm of a new text encoder has no weights yet

    by_hand = {f"{name}_embeds": skipped(name) for name in ("id_prompt", "ood_prompt")}
    wanted = pipe(**arguments(id_prompt=None, ood_prompt=None, **by_hand)).images
    found = pipe(**arguments(clip_skip=1)).images
    close(found, wanted)
    assert (found - pipe(**arguments()).images).abs().max() > 1e-3


# Stop steps


def test_strength_rounds_down_as_img2img_does(tiny_pipe):
    seen = record(tiny_pipe, ["latents"], strength=0.58, stop_step=None, num_inference_steps=50)
    assert [step for step, *_ in seen] == list(range(22, 50))
    assert tiny_pipe.get_stop_steps(4, [0.58, 1, 0.02, 0.5], None, 50) == [28, 50, 1, 25]
    assert tiny_pipe.get_stop_steps(2, np.array([0.3, 0.9]), None, 10) == [3, 9]


@pytest.mark.parametrize("stop_step", [[2, 10], (2, 10), np.array([2, 10]), torch.tensor([2, 10])])
def test_stop_step_is_exact_in_any_container(tiny_pipe, stop_step):
    assert tiny_pipe.get_stop_steps(2, None, stop_step, 10) == [2, 10]


@pytest.mark.parametrize(
    ("scheduler", "spacing"), [(EulerDiscreteScheduler, "leading"), (DPMSolverMultistepScheduler, "trailing")]
)
def test_schedule_of_every_training_step(tiny_pipe, scheduler, spacing):
    tiny_pipe.scheduler = scheduler.from_config(tiny_pipe.scheduler.config, timestep_spacing=spacing)

    def end(pipe, *_):
        pipe._interrupt = True
        return {}

    tiny_pipe(**arguments(stop_step=1000, num_inference_steps=1000), callback_on_step_end=end)


def test_one_stop_step_serves_all_images(tiny_pipe):
    assert tiny_pipe(**arguments(stop_step=3)).stop_steps == [3, 3, 3, 3]


@pytest.mark.parametrize("per_image", [True, False])
def test_stop_steps_are_drawn_uniformly_for_each_image_by_its_generator(tiny_pipe, per_image):
    count = 3000

    def draw():
        generator = [torch.Generator().manual_seed(k) for k in range(count)] if per_image else seeds(1)[0]
        return tiny_pipe.get_stop_steps(count, None, None, T, generator)

    drawn = draw()
    assert drawn == draw()
    frequencies = np.bincount(drawn, minlength=T + 1)
    assert len(frequencies) == T + 1 and frequencies[0] == 0 and (frequencies[1:] > 0).all()
    expected = count / T
    assert ((frequencies[1:] - expected) ** 2 / expected).sum() < 27.9  # chi-square of 9 degrees, p = 0.001


def test_stop_step_is_drawn_before_the_noise(make_pipe):
    pipe = make_pipe()
    drawn = pipe(**arguments(stop_step=None))
    generators = seeds()
    assert pipe.get_stop_steps(4, None, None, T, generators) == drawn.stop_steps
    close(pipe(**arguments(stop_step=drawn.stop_steps, generator=generators)).images, drawn.images)


# Callbacks


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_callback_sees_every_name_in_the_order_of_the_images(make_pipe, scheduler):
    seen = record(make_pipe(scheduler=scheduler))
    assert {step for step, *_ in seen} == set(range(5, 10))
    for step, _, tensors in seen:
        assert tuple(tensors) == NAMES
        for name, tensor in tensors.items():
            assert tensor.shape == (4, 4, 6, 8)
            assert tensor.dtype == (torch.bool if name in MASKS else torch.float64)
        waiting = [k for k, stop in enumerate(STOPS) if step < T - stop]
        for name in NAMES[1:]:
            assert not tensors[name][waiting].any()
    full = {k: sum(tensors["noise_pred"][k].any().item() for *_, tensors in seen) for k in range(4)}
    assert full == dict(enumerate(STOPS))


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_images_that_have_not_joined_have_their_noised_latents(make_pipe, scheduler):
    pipe = make_pipe(scheduler=scheduler)
    seen = record(pipe, ["latents"])
    pipe.scheduler.set_timesteps(T)
    generator = seeds()[0]
    z = pipe.vae.encode(2 * pictures()[:1] - 1).latent_dist.sample(generator) * pipe.vae.config.scaling_factor
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    wanted = pipe.scheduler.add_noise(z, noise, pipe.scheduler.timesteps[T - STOPS[0]].view(1))
    before = [tensors["latents"][:1] for step, _, tensors in seen if step < T - STOPS[0]]
    assert len(before) == 3
    for latents in before:
        close(latents, wanted)


@prediction_types
def test_callback_gets_the_masks_and_guidance_of_the_step(make_pipe, prediction_type):
    pipe = make_pipe(prediction_type=prediction_type)
    outputs = []
    pipe.unet.register_forward_hook(lambda _, args, output: outputs.append(output[0].clone()))
    regions = {"mask_threshold": 0.3, "mask_granularity": "all", "filter_ood_by_nuisance": False}
    seen = record(pipe, stop_step=[2, 3, 1, 3], guidance_scale=4.0, **regions)
    alphas = pipe.scheduler.alphas_cumprod.double()
    joined = [[1, 3], [1, 3, 0], [1, 3, 0, 2]]  # sorted by falling stop step
    for output, members, (_, t, tensors) in zip(outputs, joined, seen, strict=True):
        uncond, noise_id, noise_ood = output.chunk(3)
        wanted = sona_guidance(uncond, noise_id, noise_ood, **regions)
        for name, mask in zip(MASKS, wanted[1:], strict=True):
            assert torch.equal(tensors[name][members], mask)
        close(tensors["noise_pred"][members], uncond + 4.0 * wanted.guidance)
        a, b = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
        units = {"epsilon": 1.0, "v_prediction": a, "sample": -a / b}[prediction_type]
        close(tensors["guidance"][members], units * wanted.guidance)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_latents_that_a_callback_returns_replace_the_latents(make_pipe, scheduler):
    pipe = make_pipe(scheduler=scheduler)
    plain = pipe(**arguments()).images
    marks = torch.arange(4.0, dtype=torch.float64).view(4, 1, 1, 1)

    def mark(_, step, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"]) + marks} if step == T - 1 else {}

    assert torch.equal(pipe(**arguments(), callback_on_step_end=mark).images, marks.expand(4, 4, 6, 8))

    def move_the_second(_, step, t, tensors):
        tensors["latents"][1] += step == 6
        return tensors

    moved = pipe(**arguments(), callback_on_step_end=move_the_second).images
    close(moved[[0, 2, 3]], plain[[0, 2, 3]])
    assert (moved[1] - plain[1]).abs().max() > 1e-2


def test_changing_the_tensors_in_place_changes_nothing(make_pipe):
    pipe = make_pipe()

    def spoil(_, step, t, tensors):
        for tensor in tensors.values():
            tensor.zero_()

    found = pipe(**arguments(), callback_on_step_end=spoil, callback_on_step_end_tensor_inputs=NAMES).images
    close(found, pipe(**arguments()).images)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_interrupt_ends_the_denoising_of_this_call_only(make_pipe, scheduler):
    pipe = make_pipe(scheduler=scheduler)
    seen, last = count_rows(pipe.unet), {}

    def interrupt(pipe, step, t, tensors):
        pipe._interrupt = step == 6
        last.update(tensors)
        return {}

    stopped = pipe(**arguments(), callback_on_step_end=interrupt).images
    assert seen == [6, 6] and pipe.interrupt
    assert torch.equal(stopped[[1, 3]], last["latents"][[1, 3]])
    pipe(**arguments())
    assert sum(seen) == 12 + 3 * sum(STOPS) and not pipe.interrupt


class Recorder(PipelineCallback):
    def __init__(self, *names):
        super().__init__()
        self.names, self.seen = list(names), []

    @property
    def tensor_inputs(self):
        return self.names

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.seen.append((step_index, sorted(callback_kwargs)))
        return callback_kwargs


def test_callback_object_names_its_tensors(tiny_pipe):
    one, two = Recorder("guidance"), Recorder("ood_semantic_mask", "guidance")
    tiny_pipe(**arguments(stop_step=2), callback_on_step_end=one)
    assert one.seen == [(8, ["guidance"]), (9, ["guidance"])]
    tiny_pipe(**arguments(stop_step=1), callback_on_step_end=MultiPipelineCallbacks([one, two]))
    assert two.seen == [(9, ["guidance", "ood_semantic_mask"])]


def guided_steps(pipe, **changes):
    return [step for step, _, tensors in record(pipe, ["guidance"], **changes) if tensors["guidance"].any()]


@pytest.mark.parametrize(
    ("stop_step", "warmup", "cooldown", "guided"),
    [
        (10, 5, None, [5, 6, 7, 8, 9]),
        (5, 5, None, [5, 6, 7, 8, 9]),
        (4, 5, None, [6, 7, 8, 9]),
        (5, 0, 7, [5, 6]),
        (10, 2, 4, [2, 3]),
        (3, 0, 7, []),
    ],
)
@pytest.mark.parametrize("scheduler", [DDIMScheduler, HeunDiscreteScheduler])
def test_warmup_and_cooldown_count_on_the_full_schedule(make_pipe, scheduler, stop_step, warmup, cooldown, guided):
    pipe = make_pipe(scheduler=scheduler)
    options = {"stop_step": stop_step, "warmup_steps": warmup, "cooldown_steps": cooldown}
    assert sorted(set(guided_steps(pipe, **options))) == guided
    if not guided:
        close(pipe(**arguments(**options)).images, pipe(**arguments(stop_step=stop_step, guidance_scale=0.0)).images)


# Inputs and outputs


def test_output_types_hold_the_same_images(make_pipe):
    pipe = make_pipe()
    found = {kind: pipe(**arguments(output_type=kind)).images for kind in ("pil", "np", "pt", "latent")}
    decoded = pipe.vae.decode(found["latent"] / pipe.vae.config.scaling_factor)[0]
    close(found["pt"], (decoded / 2 + 0.5).clamp(0, 1))
    np.testing.assert_allclose(found["np"], found["pt"].permute(0, 2, 3, 1).numpy(), atol=1e-6)
    assert [(one.size, one.mode) for one in found["pil"]] == [((WIDTH, HEIGHT), "RGB")] * 4
    np.testing.assert_allclose(np.stack(found["pil"]) / 255, found["np"], atol=0.51 / 255)


def test_return_dict_false_gives_a_tuple(make_pipe):
    pipe = make_pipe()
    images, stop_steps, flags = pipe(**arguments(), return_dict=False)
    output = pipe(**arguments())
    assert torch.equal(images, output.images)
    assert stop_steps == output.stop_steps == STOPS
    assert flags is None and output.nsfw_content_detected is None


@pytest.mark.filterwarnings("error::FutureWarning")
def test_pil_arrays_and_tensors_are_the_same_images(make_pipe):
    pipe = make_pipe()
    bytes_ = (pictures().permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    arrays = bytes_.astype(np.float32) / 255
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    wanted = pipe(**arguments(image=[Image.fromarray(one) for one in bytes_])).images
    for form in (arrays, list(arrays), tensors, list(tensors), tuple(tensors)):
        close(pipe(**arguments(image=form)).images, wanted)


def test_a_single_image_needs_no_list(tiny_pipe):
    picture = Image.new("RGB", (WIDTH, HEIGHT), "teal")
    output = tiny_pipe(picture, "a cat", "a dog", stop_step=1, num_inference_steps=2)
    assert output.stop_steps == [1] and output.images[0].size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_pil_modes_fit_grey_and_colour_vaes(make_pipe, channels, mode):
    pipe = make_pipe(image_channels=channels)
    grey = Image.fromarray((np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5).astype(np.uint8) * 255)
    call = {"id_prompt": "a cat", "ood_prompt": "a dog", "stop_step": 2, "num_inference_steps": 4}
    wanted = pipe(grey, generator=seeds(1), **call).images[0]
    found = pipe(grey.convert(mode), generator=seeds(1), **call).images[0]
    assert found.mode == {1: "L", 3: "RGB"}[channels]
    assert np.array_equal(found, wanted)


def test_bfloat16(make_pipe):
    pipe = make_pipe(dtype=torch.bfloat16)
    for _, _, tensors in record(pipe, stop_step=4):
        assert tensors["latents"].isfinite().all()
        for name in ("id_semantic_mask", "id_nuisance_mask"):
            assert (tensors[name].sum(dim=(2, 3)) == 10).all()  # a fifth of 6 x 8
    images = pipe(**arguments(output_type="np")).images
    assert images.shape == (4, HEIGHT, WIDTH, 3) and np.isfinite(images).all()


class SecondIsHarmful(StableDiffusionSafetyChecker):
    def forward(self, clip_input, images):
        assert clip_input.shape == (4, 3, 8, 8) and clip_input.dtype == images.dtype
        images[1] = 0
        return images, [False, True, False, False]


def test_safety_checker_flags_and_blanks(make_pipe):
    pipe = make_pipe()
    plain = pipe(**arguments(output_type="np"))
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 8},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )
    extractor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    parts = pipe.components | {"safety_checker": SecondIsHarmful(config).double(), "feature_extractor": extractor}
    safe = SONAPipeline(**parts)
    safe.set_progress_bar_config(disable=True)
    found = safe(**arguments(output_type="np"))
    assert found.nsfw_content_detected == [False, True, False, False]
    assert not found.images[1].any()
    np.testing.assert_allclose(found.images[[0, 2, 3]], plain.images[[0, 2, 3]], atol=1e-6)
    with pytest.raises(ValueError, match="`safety_checker` needs a `feature_extractor`"):
        SONAPipeline(**parts | {"feature_extractor": None})


# Errors


@pytest.fixture
def unrun_pipe(tiny_pipe, monkeypatch):
    """A pipeline whose models must not run."""

    def fail(*_):
        pytest.fail("a model ran before the arguments were checked")

    monkeypatch.setattr(tiny_pipe.vae, "encode", fail)
    for model in (tiny_pipe.vae, tiny_pipe.text_encoder, tiny_pipe.unet):
        model.register_forward_pre_hook(fail)
    return tiny_pipe


def pil(mode="RGB", size=(WIDTH, HEIGHT)):
    return Image.new(mode, size)


def spoilt(value):
    images = pictures()
    images[2, 1, 3, 4] = value
    return images


EMBEDS = torch.zeros(4, 16, 16)
BAD_ARGUMENTS = {
    # prompts
    "no id prompt": ({"id_prompt": None}, "either `id_prompt` or `id_prompt_embeds`, and not both"),
    "no ood prompt": ({"ood_prompt": None}, "either `ood_prompt` or `ood_prompt_embeds`, and not both"),
    "id prompt twice": ({"id_prompt_embeds": EMBEDS}, "either `id_prompt` or `id_prompt_embeds`, and not both"),
    "ood prompt twice": ({"ood_prompt_embeds": EMBEDS}, "either `ood_prompt` or `ood_prompt_embeds`, and not both"),
    "three id prompts": ({"id_prompt": ["a"] * 3}, "`id_prompt` has 3 entries for 4 images"),
    "five ood prompts": ({"ood_prompt": ["a"] * 5}, "`ood_prompt` has 5 entries for 4 images"),
    "one ood prompt in a list": ({"ood_prompt": ["a"]}, "`ood_prompt` has 1 entries for 4 images"),
    "prompt of a number": ({"id_prompt": 3}, "`id_prompt` has to be a string or a list of strings, but is 3"),
    "prompts of numbers": ({"ood_prompt": [1, 2, 3, 4]}, r"`ood_prompt` has to be a string .*\[1, 2, 3, 4\]"),
    "embeddings of two images": (
        {"id_prompt": None, "id_prompt_embeds": EMBEDS[:2]},
        r"`id_prompt_embeds` has the shape \(2, 16, 16\), but \[1 or 4, length, 16\] is needed",
    ),
    "embeddings of another width": ({"uncond_prompt_embeds": EMBEDS[:, :, :5]}, r"\(4, 16, 5\), but .* is needed"),
    "flat embeddings": ({"uncond_prompt_embeds": EMBEDS[0]}, r"`uncond_prompt_embeds` has the shape \(16, 16\)"),
    "embeddings of another length": ({"uncond_prompt_embeds": EMBEDS[:, :7]}, r"different lengths \[7, 16\]"),
    # stop steps
    "strength 0": ({"stop_step": None, "strength": 0}, r"`strength` is 0, but has to be in \(0, 1\]"),
    "strength -0.1": ({"stop_step": None, "strength": -0.1}, r"`strength` is -0.1, but has to be in \(0, 1\]"),
    "strength 1.1": (
        {"stop_step": None, "strength": [0.5, 1.1, 1, 1]},
        r"`strength` is 1.1, but has to be in \(0, 1\]",
    ),
    "strength NaN": ({"stop_step": None, "strength": float("nan")}, r"`strength` is nan, but has to be in \(0, 1\]"),
    "too small a strength": (
        {"stop_step": None, "strength": 0.09},
        "0.09 is less than one of 10 steps: use at least 0.1",
    ),
    "two strengths": ({"stop_step": None, "strength": [0.5, 0.5]}, "`strength` has 2 entries for 4 images"),
    "strength and stop step": ({"strength": 0.5}, "either `strength` or `stop_step`, and not both"),
    "stop step 0": ({"stop_step": 0}, "`stop_step` is 0, but has to be made of integers from 1 to 10"),
    "stop step 11": ({"stop_step": [1, 2, 3, 11]}, r"`stop_step` is \[1, 2, 3, 11\], but .* from 1 to 10"),
    "stop step 51 of 50": ({"stop_step": 51, "num_inference_steps": 50}, "`stop_step` is 51, but .* from 1 to 50"),
    "stop step 2.5": ({"stop_step": 2.5}, "`stop_step` is 2.5, but has to be made of integers"),
    "five stop steps": ({"stop_step": [1] * 5}, "`stop_step` has 5 entries for 4 images"),
    "three generators": ({"generator": seeds(3)}, "`generator` has 3 entries for 4 images"),
    # other options
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps` is 0, but has to be an integer from 1 to 1000"),
    "1001 steps": ({"num_inference_steps": 1001}, "`num_inference_steps` is 1001, but .* from 1 to 1000"),
    "2.5 steps": ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5, but has to be an integer"),
    "threshold 0": ({"mask_threshold": 0}, r"`mask_threshold` is 0, .* strictly between 0 and 0\.5"),
    "threshold 0.5": ({"mask_threshold": 0.5}, r"`mask_threshold` is 0\.5, .* strictly between 0 and 0\.5"),
    "granularity": ({"mask_granularity": "pixel"}, "`mask_granularity` is 'pixel', but has to be one of"),
    "output type": ({"output_type": "jpg"}, "`output_type` is 'jpg', but has to be 'pil', 'np', 'pt' or 'latent'"),
    "callback inputs": (
        {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]},
        r"`callback_on_step_end_tensor_inputs` has \['prompt_embeds'\], but can have .*'latents'",
    ),
    "inputs of a callback object": ({"callback_on_step_end": Recorder("psi")}, r"has \['psi'\], but can have"),
    # images
    "no image": ({"image": []}, "`image` is empty: give at least one image"),
    "a batch of no image": ({"image": torch.zeros(0, 3, HEIGHT, WIDTH)}, "at least one image"),
    "not an image": ({"image": "cat.png"}, r"`image` is made of \['str'\]: give PIL images"),
    "a NaN": ({"image": spoilt(float("nan"))}, "Image 2 holds NaN or infinite values"),
    "an infinity": ({"image": spoilt(float("inf"))}, "Image 2 holds NaN or infinite values"),
    "a NaN in latents": ({"image": torch.full((4, 4, 6, 8), float("nan"))}, "Image 0 holds NaN"),
    "31 pixels": ({"image": [pil(size=(31, 24))] * 4}, "31 x 24 pixels, but the model takes multiples of 4"),
    "22 rows": ({"image": torch.zeros(4, 3, 22, 32)}, "32 x 22 pixels, but the model takes multiples of 4"),
    "PIL sizes": (
        {"image": [pil()] * 3 + [pil(size=(32, 32))]},
        r"Image 3 has the size \(32, 32\) and image 0 \(32, 24\)",
    ),
    "array sizes": ({"image": [np.zeros((24, 32, 3)), np.zeros((32, 32, 3))]}, "size|shape"),
    "tensor sizes": ({"image": [torch.zeros(3, 24, 32), torch.zeros(3, 32, 32)]}, "size|shape"),
    "PIL and tensor": (
        {"image": [pil(), torch.zeros(3, 24, 32)]},
        r"`image` is made of \['Image', 'Tensor'\]: give .* one kind",
    ),
    "undershoot": (
        {"image": torch.full((4, 3, 24, 32), -0.01)},
        r"Image values go below 0: scale arrays and tensors to \[0, 1\]",
    ),
    "undershoot of one": (
        {"image": [np.ones((24, 32, 3)), *3 * [np.full((24, 32, 3), -0.01)]]},
        "Image values go below 0",
    ),
    "0 to 255": ({"image": 255 * pictures()}, r"Image values go beyond 1: scale arrays and tensors to \[0, 1\]"),
    "0 to 255 in bytes": ({"image": np.full((4, 24, 32, 3), 200, dtype=np.uint8)}, "Image values go beyond 1"),
    "bytes of a tensor": ({"image": torch.full((4, 3, 24, 32), 200, dtype=torch.uint8)}, "Image values go beyond 1"),
    "16 bits": ({"image": [pil()] + [pil("I;16")] * 3}, "Image 1 has the mode 'I;16': scale it to 8 bits"),
    "32 bits": ({"image": [pil("I")] * 4}, "Image 0 has the mode 'I': scale it to 8 bits"),
    "floats": ({"image": [pil("F")] * 4}, "Image 0 has the mode 'F': scale it to 8 bits"),
    "more steps than DDIM has": ({"num_inference_steps": 1000}, "1000 leads beyond 1000 time steps: use fewer"),
    "two channels": (
        {"image": torch.zeros(4, 2, 24, 32)},
        "has 2 channels; the VAE takes 3, .* have 4",
    ),
    "grey tensors": (
        {"image": torch.zeros(4, 1, 24, 32)},
        "has 1 channels; the VAE takes 3, .* have 4",
    ),
    "an array with alpha": ({"image": np.zeros((4, 24, 32, 4))}, "channels"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_argument_is_an_error_before_any_model_runs(unrun_pipe, changes, message):
    is_type_error = any(words in message for words in ("string or a list", "string .*", "`image` is made of"))
    kind = TypeError if is_type_error else ValueError
    with pytest.raises(kind, match=message):
        unrun_pipe(**arguments(**changes))


def test_pndm_becomes_ddim_of_the_same_schedule(tiny_components):
    ddim_config = tiny_components["scheduler"].config
    pndm = PNDMScheduler.from_config(ddim_config, skip_prk_steps=True, prediction_type="v_prediction")
    pipe = SONAPipeline(**tiny_components | {"scheduler": pndm})
    assert type(pipe.scheduler) is DDIMScheduler
    assert torch.equal(pipe.scheduler.alphas_cumprod, pndm.alphas_cumprod)
    assert pipe.scheduler.final_alpha_cumprod == pndm.final_alpha_cumprod
    wanted = {"prediction_type": "v_prediction", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
    assert wanted.items() <= pipe.scheduler.config.items()


def test_outdated_settings_of_a_scheduler_are_those_of_stable_diffusion(tiny_components):
    outdated = DDIMScheduler(steps_offset=0, clip_sample=True, beta_start=0.001)
    scheduler = SONAPipeline(**tiny_components | {"scheduler": outdated}).scheduler
    assert {"steps_offset": 1, "clip_sample": False, "beta_start": 0.001}.items() <= scheduler.config.items()
    assert SONAPipeline(**tiny_components).scheduler is tiny_components["scheduler"]


def test_pndm_set_later_is_an_error_before_any_model_runs(unrun_pipe):
    unrun_pipe.scheduler = PNDMScheduler.from_config(unrun_pipe.scheduler.config)
    with pytest.raises(
        ValueError, match=r"`PNDMScheduler` \(.*\) cannot start at stop step 1 of 10.*take DDIMScheduler"
    ):
        unrun_pipe(**arguments())


@pytest.mark.parametrize(("image", "step"), [(0, 8), (1, 6), (3, 9)])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_nan_while_denoising_names_the_image_and_its_first_step(make_pipe, scheduler, image, step):
    pipe = make_pipe(scheduler=scheduler)
    timesteps = type(pipe.scheduler).from_config(pipe.scheduler.config)
    timesteps.set_timesteps(T)
    bad_time, bad_prompt = timesteps.timesteps[step], embed(pipe, "", *arguments()["ood_prompt"])[1 + image]

    def spoil(_, args, kwargs, output):
        for row, prompt in enumerate(kwargs["encoder_hidden_states"]):
            if args[1] == bad_time and torch.equal(prompt, bad_prompt):
                output[0][row, 0, 0, 0] = float("nan")

    pipe.unet.register_forward_hook(spoil, with_kwargs=True)
    message = re.escape(f"latents of image {image} became NaN or infinite at step {step}")
    with pytest.raises(FloatingPointError, match=message):
        pipe(**arguments())


def test_a_schedule_of_the_users_own_is_the_one_that_is_followed(make_pipe):
    pipe = make_pipe(scheduler=EulerDiscreteScheduler)
    wanted = pipe(**arguments()).images
    pipe.scheduler.set_timesteps(T)
    own = pipe.scheduler.timesteps.tolist()
    close(pipe(**arguments(timesteps=own)).images, wanted, 1e-4)
    assert (pipe(**arguments(timesteps=[*own[:-2], own[-2] - 40, own[-1]])).images - wanted).abs().max() > 1e-3
    for changes in (
        {"timesteps": own, "sigmas": own},
        {"timesteps": own[::-1]},
        {"sigmas": [1.0, 1.0]},
        {"sigmas": []},
    ):
        with pytest.raises(ValueError, match=r"either `timesteps` or `sigmas`|has to fall from noise to image"):
            pipe(**arguments(**changes))
