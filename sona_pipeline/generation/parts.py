"""Parts of a set, which are made apart: with no process group, no shared disk, and in any order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sona_pipeline.common.files import digest_of
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.parts import Part
from sona_pipeline.generation.plan import Plan
from sona_pipeline.generation.settings import OutputSettings


def check_part(writing: OutputSettings) -> None:
    """Raise ValueError if settings ask for a part that there is not, or that cannot be told from the others."""
    if writing.part and Part.parse(writing.part) and writing.batch_size == "auto":
        raise ValueError(
            f"part {writing.part} needs a batch size that all parts have in common, since batches are what is shared"
            " out: give a number instead of 'auto'"
        )


def share_of(plan: Plan, part: Part, batch_size: int) -> Plan:
    """The plan of a part: every `total`-th batch of the whole plan, so that batches are the same as in one run."""
    batches = plan.batches(batch_size)[part.number - 1 :: part.total]
    kept = np.sort(np.concatenate([np.empty(0, np.int64), *(batch.indices for batch in batches)]))
    columns = ("hashes", "stop_steps", "labels", "seeds", "partners")
    return replace(plan, images=plan.images.take(kept.tolist()), **{c: getattr(plan, c)[kept] for c in columns})


def recorded_part(images: ImageSet, writing: OutputSettings) -> dict[str, object]:
    """What parts of one set have in common beside the settings of any run, and which part it is."""
    if not writing.part:
        return {}
    of = digest_of([images.keys, images.labels, images.classes])
    return {"part": str(Part.parse(writing.part)), "batch_size": writing.batch_size, "images": of}
