"""A call of the pipeline beside bare UNet calls of the very same rows."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from planned import arguments_of, plan_of
from timing import SEED, Comparison, Ratio, rounds_in_turn

from sona_pipeline import SONAPipeline, load_pipeline

IMAGES = 32
"""Images of one call with the embedded model, each with a stop step of its own."""
SD2_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "layers_per_block": 2,
    "use_linear_projection": True,
}
"""The layers of stable-diffusion-2-base, beside diffusers' defaults: 866 million parameters, 3.5 GB in float32."""
SD2_SIDE = 32
"""Side of its latents, half of its own, and few steps: a call then takes seconds on a CPU."""
SD2_STEPS = 3
SD2_TOKENS = 77


class BareUNet:
    """The UNet calls that some work makes, recorded once and made again with nothing around them.

    Rows, shapes, strides, dtypes and time steps are those of the work. Calls of the same shape share their values,
    which the time does not depend on, so that little is kept.

    Args:
        unet: called by the work as `unet(sample, timestep, encoder_hidden_states=...)`.
        work: is run once.
    """

    def __init__(self, unet: UNet2DConditionModel, work: Callable[[], object]):
        self.unet, self.calls, self._inputs = unet, [], {}
        hook = unet.register_forward_pre_hook(self._record, with_kwargs=True)
        try:
            work()
        finally:
            hook.remove()

    def _record(self, unet, arguments, named) -> None:
        (sample, timestep), embeds = arguments, named["encoder_hidden_states"]
        inputs = self._inputs.setdefault((sample.shape, sample.stride(), embeds.shape), (sample, embeds))
        self.calls.append((*inputs, timestep))

    @property
    def rows(self) -> int:
        """Rows of all calls."""
        return sum(len(sample) for sample, _, _ in self.calls)

    @torch.no_grad()
    def __call__(self) -> None:
        """Make the calls again."""
        for sample, embeds, timestep in self.calls:
            self.unet(sample, timestep, encoder_hidden_states=embeds, return_dict=False)


def compare(rounds: int) -> list[Comparison]:
    """The embedded model from images to images, and a UNet of Stable Diffusion's size from latents to latents."""
    return [embedded(rounds), sd2_sized(rounds)]


def embedded(rounds: int) -> Comparison:
    """The whole call: images and prompts are encoded, and the outliers decoded."""
    pipe, plan = load_pipeline("tiny", "cpu"), plan_of(IMAGES)

    def call() -> None:
        pipe(**arguments_of(pipe, plan, range(IMAGES)))

    return _beside_bare("embedded model", pipe, call, IMAGES, 1.10, rounds)


def sd2_sized(rounds: int) -> Comparison:
    """One image, with text embeddings and latents given."""
    pipe = sd2_pipeline()
    generator = torch.Generator().manual_seed(SEED)
    shape = (1, SD2_TOKENS, pipe.unet.config.cross_attention_dim)
    embeds = {f"{name}_prompt_embeds": torch.randn(shape, generator=generator) for name in ("uncond", "id", "ood")}
    latents = torch.randn(1, 4, SD2_SIDE, SD2_SIDE, generator=generator)

    def call() -> None:
        pipe(latents, **embeds, stop_step=SD2_STEPS, output_type="latent", generator=generator)

    return _beside_bare("UNet of Stable Diffusion 2, random weights", pipe, call, 1, 1.02, rounds)


def sd2_pipeline() -> SONAPipeline:
    """A pipeline around a UNet of Stable Diffusion 2 with random weights; it neither encodes nor decodes."""
    torch.manual_seed(SEED)
    unet = UNet2DConditionModel(**SD2_UNET).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pipe = SONAPipeline(AutoencoderKL(), None, None, unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _beside_bare(title: str, pipe, call: Callable[[], None], images: int, goal: float, rounds: int) -> Comparison:
    bare = BareUNet(pipe.unet, call)
    things = {"SONAPipeline": call, "bare UNet": bare}
    counts = {"images": images, "UNet rows": bare.rows, "UNet calls": len(bare.calls)}
    ratio = Ratio("SONAPipeline", "bare UNet", at_most=goal)
    return Comparison(title, counts, images, "images", rounds_in_turn(things, rounds), (ratio,))
