"""A call of the pipeline with the embedded model beside bare UNet calls of the very same rows."""

from bare_denoiser import BareDenoiser
from planned import arguments_of, plan_of
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import load_pipeline

IMAGES = 32
"""Images of one call, each with a stop step of its own."""


def compare(rounds: int) -> list[Comparison]:
    """The whole call: images and prompts are encoded, and the outliers decoded."""
    pipe, plan = load_pipeline("tiny", "cpu"), plan_of(IMAGES)

    def call() -> None:
        pipe(**arguments_of(pipe, plan, range(IMAGES)))

    bare = BareDenoiser(pipe.unet, call)
    things = {"SONAPipeline": call, "bare UNet": bare}
    counts = {"images": IMAGES, "UNet rows": bare.rows, "UNet calls": len(bare.calls)}
    ratio = Ratio("SONAPipeline", "bare UNet", at_most=1.10)
    return [Comparison("embedded model", counts, IMAGES, "images", rounds_in_turn(things, rounds), (ratio,))]
