"""SONA in blocks of modular diffusers makes the outliers that the pipeline of the family makes."""

import importlib

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    PNDMScheduler,
    SequentialPipelineBlocks,
)
from tiny_pipelines import SCHEDULE, build

from sona_pipeline import TINY_MODEL, SONABlocks, SONAGuider, SONAPipeline
from sona_pipeline.pipelines.families import FAMILIES

# diffusers' schedulers and NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

NAMES = ["latents", *SONAPipeline._callback_tensor_inputs[1:]]
STEPS, STOP = 8, 5


class Keep(ModularPipelineBlocks):
    """What a user inserts to see every step."""

    inputs = [InputParam("kept", list)]
    intermediate_outputs = [OutputParam("kept", list)]

    def __call__(self, components, state, i, t):
        state.kept = [*(state.kept or []), {name: state[name] for name in NAMES}]
        return components, state


def modular(components, guider=None):
    """The modular pipeline of components, which keeps what there is at each step."""
    blocks = SONABlocks(SONAPipeline)
    loop = blocks.sub_blocks["denoise"]
    loop.sub_blocks.insert("keep", Keep(), len(loop.sub_blocks))
    loop.set_progress_bar_config(disable=True)
    pipe = blocks.init_pipeline()
    pipe.update_components(**components, **({"guider": SONAGuider(**guider)} if guider else {}))
    return pipe


def arguments(count=2, **changes):
    """Arguments of a call, the same for both, with new generators."""
    images = torch.rand(count, 3, 32, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {
        "image": images,
        "id_prompt": ["a cat", "a barn"][:count],
        "ood_prompt": "a dog",
        "stop_step": STOP,
        "num_inference_steps": STEPS,
        "generator": [torch.Generator().manual_seed(k) for k in range(count)],
        "output_type": "latent",
    } | changes


def both(components, guider=None, make=arguments):
    """The images and the tensors of each step, by the pipeline and by the blocks."""
    kept, pipe = [], SONAPipeline(**components)
    pipe.set_progress_bar_config(disable=True)

    def keep(pipe, step, t, tensors):
        kept.append(tensors)
        return {}

    watched = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": NAMES}
    made = pipe(**make(), **watched, **(guider or {}))
    state = modular(components, guider)(**make())
    return made, kept, state


def assert_same(made, kept, state):
    """Equal but for rounding in float64, which the place of weights in memory changes."""
    torch.testing.assert_close(state.images, made.images, atol=1e-9, rtol=0)
    assert state.stop_steps == made.stop_steps
    assert len(kept) == len(state.kept) > 0
    for expected, found in zip(kept, state.kept):
        for name in NAMES:
            torch.testing.assert_close(found[name], expected[name], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler],
    ids=lambda one: one.__name__,
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_images_and_tensors_of_every_step_are_those_of_the_pipeline(scheduler, prediction_type):
    if scheduler in (HeunDiscreteScheduler, EulerAncestralDiscreteScheduler) and prediction_type == "sample":
        pytest.skip("diffusers has it not")
    assert_same(*both(build(prediction_type, scheduler, dtype=torch.float64)))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 1, "stop_step": None},
        {"count": 1, "stop_step": None, "strength": 0.7},
        {"generator": torch.Generator()},
        {"output_type": "pt", "eta": 0.5, "clip_skip": 1},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_arguments_mean_the_same(changes):
    def make():
        if isinstance(one := changes.get("generator"), torch.Generator):
            one.manual_seed(5)
        return arguments(**changes)

    assert_same(*both(build(dtype=torch.float64), make=make))


@pytest.mark.parametrize(
    "guider",
    [
        {"warmup_steps": STEPS - STOP + 2, "cooldown_steps": STEPS - 1},
        {"guidance_scale": 4.0, "mask_threshold": 0.1, "mask_granularity": "all", "filter_ood_by_nuisance": False},
        {"global_guidance": True},
    ],
    ids=lambda guider: "-".join(guider),
)
def test_guider_has_the_settings_of_the_call(guider):
    assert_same(*both(build(dtype=torch.float64), guider))


def test_half_precision_keeps_latents_and_steps_in_float32():
    state = modular(build(dtype=torch.bfloat16))(**arguments())
    assert state.latents.dtype == state.kept[0]["guidance"].dtype == torch.float32
    assert state.latents.isfinite().all()


def test_three_rows_an_image_in_one_call_a_step():
    pipe, rows = modular(build()), []
    pipe.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    pipe(**arguments())
    assert rows == [6] * STOP


def test_embeddings_may_come_instead_of_prompts():
    components = build(dtype=torch.float64)
    own = SONAPipeline(**components)
    embeds = {
        f"{name}_embeds": own.encode_texts([text], torch.device("cpu"))
        for name, text in {"id_prompt": "a cat", "ood_prompt": "a dog", "uncond_prompt": ""}.items()
    }
    by_text = modular(components)(**arguments(id_prompt="a cat"), output="images")
    given = arguments(**embeds, id_prompt=None, ood_prompt=None)
    torch.testing.assert_close(modular(components)(**given, output="images"), by_text)


def test_blocks_can_be_left_out_and_put_into_others():
    components, made = build(dtype=torch.float64), []
    expected = modular(components)(**arguments(), output="images")
    blocks = SONABlocks(SONAPipeline).sub_blocks
    before = SequentialPipelineBlocks.from_blocks_dict({name: blocks[name] for name in ("input", "text", "image")})
    after = SequentialPipelineBlocks.from_blocks_dict({name: blocks[name] for name in ("noise", "denoise")})
    for part in (before, after):
        pipe = part.init_pipeline()
        pipe.update_components(**components)
        made.append(pipe)
    given = arguments()
    state = made[0](**given)
    passed = {name: state.get(name) for name in ("image_latents", "conditions", "stop_steps")}
    passed |= {name: given[name] for name in ("num_inference_steps", "generator")}
    torch.testing.assert_close(made[1](**passed, output="latents"), expected)


def test_scheduler_that_cannot_start_mid_way_is_replaced_in_the_pipeline_too():
    components = build() | {"scheduler": PNDMScheduler(**{k: v for k, v in SCHEDULE.items() if k != "clip_sample"})}
    pipe = modular(components)
    pipe(**arguments())
    assert type(pipe.scheduler) is DDIMScheduler


def test_checkpoint_that_leaves_components_out_loads_without_complaint(caplog):
    pipe = SONABlocks(SONAPipeline).init_pipeline(str(TINY_MODEL))
    pipe.load_components(dtype=torch.float32)
    assert not [record for record in caplog.records if "Failed" in record.message]
    assert pipe.null_component_names == ["safety_checker", "feature_extractor"]
    image = torch.rand(1, 1, 32, 32)
    made = pipe(image=image, id_prompt="a shirt", ood_prompt="a bag", stop_step=1, num_inference_steps=2)
    assert made.images[0].size == (32, 32)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"stop_step": [2, 4]}, ValueError, r"`stop_step` is \[2, 4\].* one schedule: .* call `SONAPipeline`"),
        ({"strength": 0.5}, ValueError, "either `strength` or `stop_step`"),
        ({"stop_step": STEPS + 1}, ValueError, "integers from 1 to 8"),
        ({"num_inference_steps": 2000}, ValueError, "`num_inference_steps` is 2000"),
        ({"generator": [torch.Generator()]}, ValueError, "`generator` has 1 entries for 2 images"),
        ({"output_type": "jpg"}, ValueError, "`output_type` is 'jpg'"),
        ({"id_prompt": ["a cat"]}, ValueError, "`id_prompt` has 1 entries for 2 images"),
        ({"ood_prompt": None}, ValueError, "either `ood_prompt` or `ood_prompt_embeds`"),
        ({"image": torch.rand(1, 3, 30, 30)}, ValueError, "multiples of 4"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_what_cannot_be_is_said_before_any_model_is_run(changes, error, message):
    pipe, calls = modular(build()), []
    for name in ("vae", "text_encoder", "unet"):
        pipe.components[name].register_forward_pre_hook(lambda *given: calls.append(given))
    with pytest.raises(error, match=message):
        pipe(**arguments(**changes))
    assert not calls


def test_latents_that_become_nan_are_named():
    pipe = modular(build(), {"guidance_scale": 1e308})
    with pytest.raises(FloatingPointError, match="latents of image 0"):
        pipe(**arguments())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_its_components_by_its_pipeline(family):
    module = importlib.import_module(f"sona_pipeline.pipelines.families.{family}")
    pipe = SONABlocks(getattr(module, FAMILIES[family])).init_pipeline()
    assert {"vae", "scheduler", "guider"} <= set(pipe.component_names)
    kinds = [pipe.get_component_spec(name).type_hint for name in pipe.component_names]
    assert all(hasattr(kind, "from_pretrained") for kind in kinds)
    assert all(word in pipe.doc for word in ("id_prompt", "ood_prompt", "stop_step"))
