"""SONA beside diffusers' SEGA (Brack et al. 2023) with three concepts, on the same weights, batch and steps."""

from diffusers import SemanticStableDiffusionPipeline
from planned import SETTINGS, arguments_of, plan_of
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import SONAPipeline, load_pipeline

IMAGES = 32
"""Images of one call, all from the first step of the schedule."""
CONCEPTS = ["a photo of a bag", "a photo of a sandal", "a photo of a shirt"]
"""With the empty prompt and the image's own, SEGA computes five UNet rows an image and step, and SONA three."""


def compare(rounds: int) -> list[Comparison]:
    """Both to latents, in float32; SONA encodes images at the start, where SEGA draws noise."""
    pipe, plan = load_pipeline("tiny", "cpu", dtype="float32"), plan_of(IMAGES)
    steps, other = SETTINGS.num_inference_steps, sega_pipeline(pipe)

    def sona() -> None:
        arguments = arguments_of(pipe, plan, range(IMAGES)) | {"stop_step": steps}
        pipe(**arguments, output_type="latent")

    def sega() -> None:
        arguments = arguments_of(pipe, plan, range(IMAGES))
        other(
            arguments["id_prompt"],
            num_inference_steps=steps,
            generator=arguments["generator"],
            editing_prompt=CONCEPTS,
            output_type="latent",
        )

    things = {"SEGA": sega, "SONA": sona}
    counts = {"images": IMAGES, "steps": steps, "concepts of SEGA": len(CONCEPTS)}
    ratio = Ratio("SEGA", "SONA", at_least=1.7)
    return [Comparison("embedded model", counts, IMAGES, "images", rounds_in_turn(things, rounds), (ratio,))]


def sega_pipeline(pipe: SONAPipeline) -> SemanticStableDiffusionPipeline:
    """diffusers' SEGA with the very models of a pipeline, and without a safety checker."""
    other = SemanticStableDiffusionPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    other.set_progress_bar_config(disable=True)
    return other
