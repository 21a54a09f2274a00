"""Where the time of a call of the pipeline goes, operation by operation, with the embedded model.

python examples/benchmarks/speed/profile_pipeline.py
"""

from bare_unet import IMAGES
from planned import arguments_of, plan_of
from torch.profiler import ProfilerActivity, profile

from sona_pipeline import load_pipeline

LINES = 25


def main() -> None:
    """Print a table of the operations by their own time on the CPU, after a call that warms up."""
    pipe, plan = load_pipeline("tiny", "cpu"), plan_of(IMAGES)
    pipe(**arguments_of(pipe, plan, range(IMAGES)))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        pipe(**arguments_of(pipe, plan, range(IMAGES)))
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=LINES))


if __name__ == "__main__":
    main()
