"""Every scheduler of diffusers at every stop step: with the exact noise the source comes back, or it is refused."""

import inspect

import diffusers.schedulers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from tiny_pipelines import SCHEDULE

from sona_pipeline.pipelines.schedules import Schedule, check_scheduler, noised, usable_scheduler

# diffusers' schedulers and NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

ALL = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler") and not name.startswith("Flax")]
FLOWS = [name for name in ALL if "scale_noise" in vars(getattr(diffusers.schedulers, name))]
NAMES = [name for name in ALL if name not in FLOWS]
GOOD = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler")
DETERMINISTIC = {
    "CogVideoXDDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}
RANDOM = {
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
}
OPTIONS = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "v_prediction", "use_karras_sigmas": True},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {"prediction_type": "sample"},
    {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    {"solver_order": 3},
    {"solver_type": "heun"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
]


def class_of(name):
    """A scheduler class, or None where it needs a library that is not here."""
    kind = getattr(diffusers.schedulers, name)
    return None if "dummy" in kind.__module__ else kind


def made(name, **options):
    kind = class_of(name)
    known = inspect.signature(kind.__init__).parameters
    if not options.keys() <= known.keys():
        return None
    try:
        return kind.from_config(DDIMScheduler(**SCHEDULE).config, **options)
    except (TypeError, ValueError, NotImplementedError):
        return None  # it needs other arguments, or says that these do not go together


def refusal(scheduler, steps=10):
    try:
        check_scheduler(scheduler, Schedule(steps))
    except ValueError as error:
        return str(error)
    return None


def output(scheduler, index, noise, source):
    """What a model predicts that knows the source and the noise, at the scheduler's own noise level."""
    if hasattr(scheduler, "sigmas") and not hasattr(scheduler, "sigmas_interpol"):
        alpha = 1 / (1 + scheduler.sigmas[index].double() ** 2)
    else:
        alpha = scheduler.alphas_cumprod[int(scheduler.timesteps[index])].double()
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * source
    kinds = {"epsilon": noise, "v_prediction": velocity, "sample": source, "flow_prediction": noise - source}
    return kinds[scheduler.config.prediction_type]


def shares_left(scheduler, steps, stop_step):
    """How much of a source of 1 and of its noise is left after denoising with exactly this noise."""
    source, noise = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]], dtype=torch.float64)[:, None, 0]
    source, noise = source[None], noise[None]
    scheduler.set_timesteps(steps)
    join = (steps - stop_step) * scheduler.order
    x = noised(scheduler, source, noise, [join])
    wanted = inspect.signature(scheduler.step).parameters
    extra = {"eta": 0.0} if "eta" in wanted else {}
    for index in range(join, len(scheduler.timesteps)):
        t = scheduler.timesteps[index]
        scheduler.scale_model_input(x, t)
        prediction = output(scheduler, index, noise, source)
        x = scheduler.step(prediction, t, x.clone(), **extra, return_dict=False)[0]
    return x.flatten().tolist()


@pytest.mark.parametrize("name", NAMES)
def test_source_comes_back_or_the_scheduler_is_refused_by_name(name):
    if class_of(name) is None:
        pytest.skip("a library is missing")
    accepted = 0
    for options in OPTIONS:
        if (scheduler := made(name, **options)) is None:
            continue
        if said := refusal(scheduler):
            assert name in said and "\n" not in said and any(good in said for good in GOOD)
            assert options or name not in DETERMINISTIC | RANDOM
            continue
        accepted += 1
        if name in DETERMINISTIC:
            for stop_step in range(1, 11):
                left, noise = shares_left(scheduler, 10, stop_step)
                # what is left of the noise is the lowest level of the schedule, 0.029
                assert abs(left - 1) < 0.03 and abs(noise) < 0.055, (options, stop_step, left, noise)
    assert bool(accepted) == (name in DETERMINISTIC | RANDOM)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("sigmas", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_time_steps_that_occur_twice_have_their_own_noise(name, sigmas):
    scheduler = made(name, **{sigmas: True})
    scheduler.set_timesteps(50)
    assert sigmas != "use_karras_sigmas" or name[0] == "E" or len(set(scheduler.timesteps.tolist())) < 50
    assert refusal(scheduler, 50) is None
    for stop_step in range(1, 51):
        assert shares_left(scheduler, 50, stop_step) == pytest.approx([1, 0], abs=1e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"])
def test_each_image_is_noised_to_its_own_index(name):
    scheduler = made(name, use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    joins = [4 * scheduler.order, 9 * scheduler.order, 4 * scheduler.order]
    noise = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = noised(scheduler, torch.zeros_like(noise), noise, joins)
    levels = [float(scheduler.sigmas[join]) for join in joins]
    if name != "HeunDiscreteScheduler":
        levels = [sigma / (1 + sigma**2) ** 0.5 for sigma in levels]
    torch.testing.assert_close(found, noise * torch.tensor(levels, dtype=torch.float64).view(3, 1, 1, 1))


REFUSED = {
    "clipped": (DDIMScheduler, {"clip_sample": True}, r"`DDIMScheduler` \(clip_sample=True.*does not come back"),
    "thresholded": (UniPCMultistepScheduler, {"thresholding": True}, r"\(thresholding=True.*does not come back"),
    "uneven": (DDIMScheduler, {"timestep_spacing": "linspace"}, r"\(timestep_spacing='linspace'.*cannot start"),
    "no signal": (
        DDIMScheduler,
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        "latents become NaN or infinite",
    ),
    "flow": (
        DPMSolverMultistepScheduler,
        {"use_flow_sigmas": True},
        r"use_flow_sigmas=True, .*its noise is off by 0\.2",
    ),
    "other time": (
        EulerDiscreteScheduler,
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        "its noise is off",
    ),
    "too long": (DDIMScheduler, {"num_train_timesteps": 9}, "`DDIMScheduler` .*cannot be larger than"),
}


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_do_not_bring_images_back_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        check_scheduler(kind.from_config(DDIMScheduler(**SCHEDULE).config, **options), Schedule(10))


class SharedNoise(DDIMScheduler):
    """A scheduler that draws its noise for the batch as a whole."""

    def step(self, model_output, timestep, sample, **kwargs):
        moved, *_ = super().step(model_output, timestep, sample, return_dict=False)
        return (moved + 1e-3 * torch.randn_like(moved),)


def test_noise_that_is_no_images_own_is_refused_and_draws_nothing():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="adds noise that is not drawn from the generator of each image"):
        check_scheduler(SharedNoise(**SCHEDULE), Schedule(10))
    assert torch.equal(torch.get_rng_state(), before)


def test_scheduler_is_left_as_it_is_by_the_check():
    scheduler = UniPCMultistepScheduler(
        **{k: v for k, v in SCHEDULE.items() if k not in ("clip_sample", "set_alpha_to_one")}
    )
    before = scheduler.timesteps.clone()
    check_scheduler(scheduler, Schedule(7))
    assert torch.equal(scheduler.timesteps, before)


def test_settings_of_a_checkpoint_that_clip_or_are_uneven_are_mended():
    given = DDIMScheduler(**SCHEDULE | {"timestep_spacing": "linspace", "clip_sample": True}, thresholding=True)
    found = usable_scheduler(given)
    assert refusal(found, 50) is None
    assert found.config.timestep_spacing == "leading"
    assert not found.config.clip_sample and not found.config.thresholding


def test_pipeline_refuses_before_any_model_runs(tiny_pipe, monkeypatch):
    monkeypatch.setattr(tiny_pipe.vae, "encode", lambda *_: pytest.fail("a model was run"))
    tiny_pipe.scheduler = diffusers.LMSDiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    with pytest.raises(ValueError, match=r"`LMSDiscreteScheduler` .* cannot start at stop step"):
        tiny_pipe(torch.zeros(1, 3, 32, 32), "a cat", "a dog", num_inference_steps=10)
    tiny_pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="`FlowMatchEulerDiscreteScheduler` has no 'add_noise'"):
        tiny_pipe(torch.zeros(1, 3, 32, 32), "a cat", "a dog", num_inference_steps=10)


FLOW_OPTIONS = [
    {},
    {"shift": 3.0},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    {"use_karras_sigmas": True},
    {"shift_terminal": 0.02},
    {"stochastic_sampling": True},
    {"invert_sigmas": True},
]


def flow_left(scheduler, schedule, stop_step):
    """The source that comes back if the exact velocity is followed from a stop step on, less the source."""
    source, noise = (torch.randn(1, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    timesteps = schedule.set(scheduler)
    x = noised(scheduler, source, noise, [schedule.steps - stop_step])
    for t in timesteps[-stop_step:]:
        x = scheduler.step(noise - source, t, x, return_dict=False)[0]
    return float((x - source).abs().max())


@pytest.mark.parametrize("name", FLOWS)
def test_flow_schedulers_bring_a_source_back_or_are_refused_by_name(name):
    accepted = []
    for options in FLOW_OPTIONS:
        if not options.keys() <= inspect.signature(class_of(name).__init__).parameters.keys():
            continue
        scheduler, schedule = class_of(name)(**options), Schedule(10, mu=0.8)
        try:
            check_scheduler(scheduler, schedule)
        except ValueError as error:
            assert name in str(error) and "FlowMatchEulerDiscreteScheduler" in str(error)
            continue
        accepted.append(options)
        if name == "FlowMatchEulerDiscreteScheduler" and "stochastic_sampling" not in options:
            left = [flow_left(scheduler, schedule, stop_step) for stop_step in range(1, 11)]
            assert max(left) < 1e-5, (options, left)
    if name == "FlowMatchEulerDiscreteScheduler":
        assert accepted == FLOW_OPTIONS[:7]  # noise that is added on the way is each image's own


def test_schedule_of_a_users_own_is_taken_as_it_is():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    assert Schedule(3, sigmas=(1.0, 0.5, 0.25)).set(scheduler).tolist() == [1000, 500, 250]
    ddpm = made("DDPMScheduler")
    assert Schedule(3, timesteps=(900.0, 500.0, 100.0)).set(ddpm).tolist() == [900, 500, 100]
    with pytest.raises(ValueError, match=r"`DDIMScheduler`.* cannot be used: .*timesteps"):
        check_scheduler(made("DDIMScheduler"), Schedule(3, timesteps=(900.0, 500.0, 100.0)))
