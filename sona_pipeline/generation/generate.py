"""Job: one outlier of every image of a labelled set, at data-set scale, as a set that the ecosystem opens as it is."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image
from safetensors.torch import load_file, save

from sona_pipeline.common.devices import default_dtype, usable_device
from sona_pipeline.common.files import digest, only_run, read_json, settle_settings, versions, write_bytes, write_text
from sona_pipeline.common.names import expanded
from sona_pipeline.common.processes import process_state
from sona_pipeline.common.progress import Track
from sona_pipeline.common.settings import check_ranges
from sona_pipeline.data.codecs import KeptForm
from sona_pipeline.data.copies import local_copy
from sona_pipeline.data.image_set import ImageSet, check_there, is_grey
from sona_pipeline.data.outlier_set import read_rejects, read_settings
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.parts import Part
from sona_pipeline.data.rejects import may_pass, reasons_of
from sona_pipeline.data.remote import address_of
from sona_pipeline.data.set_files import REJECTS, SETTINGS, hash_of
from sona_pipeline.data.settings import CODECS
from sona_pipeline.data.uploads import check_place, writer_to
from sona_pipeline.generation.batches import default_batch_size, make_batches
from sona_pipeline.generation.checkpoint import find_batch_size, identity, model_place
from sona_pipeline.generation.checks import BY_CLASSIFIER, checks_asked, load_classifier
from sona_pipeline.generation.families import is_flow
from sona_pipeline.generation.make import OutlierMaker, image_form, is_grey_model, kept_form
from sona_pipeline.generation.ood_labels import pipeline_encoder, similarities, text_encoder
from sona_pipeline.generation.parts import check_part, recorded_part, share_of
from sona_pipeline.generation.plan import Batch, Plan, check_settings, plan_outliers
from sona_pipeline.generation.prompts import check_prompts
from sona_pipeline.generation.settings import GenerationSettings, ModelSettings, OutputSettings, last_dtype
from sona_pipeline.generation.ways import WAYS
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline
from sona_pipeline.pipelines.schedules import check_scheduler

logger = logging.getLogger(__name__)
PREPARED = "way.safetensors"
"""What a way has found out for a set."""
SECONDS_UNTIL_IN_SIGHT = 300
"""How long files of other machines may take to appear."""
NEW_KEYS = {"codec": "png", "way": "sona", "ood_embeddings": None, "blend": "none", "min_strength": 0.0}
"""What version 0.1.0 did not record, and how it was then."""
Result = TypeVar("Result")


def generate_outliers(
    images: ImageSet,
    pipe: SONAMixin,
    output: str | Path,
    settings: GenerationSettings,
    writing: OutputSettings | None = None,
    *,
    id_names: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write one outlier of each image to `output`, and go on where an earlier run stopped.

    As a folder, the outliers lie in `output/outliers`, by source class, with `metadata.jsonl` beside them (file name,
    source key and class, labels, stop step, seed, quality checks, content hash); the VAE round trips of the images in
    `output/reconstructions` under the same names; `output/outliers.txt` lists the outliers as OpenOOD does. As shards,
    `output/outliers` has both together, and `output/metadata.jsonl` the table. `settings.json` has all settings, and
    `rejects.jsonl` the images without an outlier, with the reason.

    Under `accelerate launch` the processes share the work; `output` has to be a folder that all of them see.

    Args:
        images: labelled images.
        pipe: a loaded pipeline.
        output: folder of the set, or an address that takes it by whole shards.
        settings: how outliers are made.
        writing: what is written.
        id_names: all names of the ID classes, for the classifier.

    Returns:
        The place `output`.

    Raises:
        ValueError: labels, images, model, settings or those of an earlier run do not go together; or nothing was made
            of the images, with the reasons.
        FileNotFoundError: none of the images is there.
        BlockingIOError: another run is writing to the folder.
        OSError: the disk fails or is full, or, when strict, an image cannot be read. What was written before stays.
        FloatingPointError: the latents of a whole batch became NaN or infinite.
    """
    state, writing = process_state(), writing or OutputSettings()
    check_place(output, writing.format, settings.drop_duplicates and not writing.part, state.num_processes)
    check_run(images, pipe, settings, writing)
    _check_way_place(settings.way, output)
    batch_size = settled_batch_size(pipe, settings, writing, output)
    writing = replace(writing, batch_size=batch_size)
    form = kept_form(image_form(pipe, settings.size)[0], writing)
    plan = make_plan(images, pipe, settings, writing)
    names = id_names or {name: (settings.id_label(name),) for name in images.classes}
    asked = checks_asked(settings.reject)
    classifier = load_classifier(writing.classifier, names, pipe.device, asked) if writing.classifier else None
    maker = OutlierMaker(
        pipe,
        plan,
        form=form,
        reconstructions=writing.reconstructions,
        classifier=classifier,
        strict=writing.strict,
    )
    maker.way.load(maker, writing.classifier)
    with ExitStack() as stack:
        writer = stack.enter_context(writer_to(output, writing.format, is_part=bool(writing.part)))

        def settle() -> None:
            stack.enter_context(only_run(writer.folder))
            writer.discard()
            if not (writer.folder / SETTINGS).exists():
                (writer.folder / PREPARED).unlink(missing_ok=True)
            fixed, notes = _recorded(pipe, settings, writing, form)
            settle_settings(writer.folder / SETTINGS, fixed | recorded_part(images, writing), notes, NEW_KEYS)
            _note_dtype(writer.folder / SETTINGS, str(pipe.denoiser.dtype))

        _on_main_process(state, settle)
        prepared = _on_main_process(state, lambda: _prepared(maker, writer.folder))
        maker.way.begin(maker, prepared)
        is_done = _on_main_process(state, lambda: _done(plan, writer, writing.reconstructions))
        batches = _remaining(plan, is_done, batch_size)
        mine = batches[state.process_index :: state.num_processes]
        title = f"outliers of part {writing.part}" if writing.part else "outliers"
        with Track(title, len(plan), shown=state.is_main_process) as track:
            ready = int(is_done.sum())
            track.reach(ready)
            for count in make_batches(maker, writer, mine):
                ready += count * state.num_processes
                track.reach(min(ready, len(plan)))
            state.wait_for_everyone()
            track.reach(len(plan))
        _on_main_process(state, lambda: _finish(plan, writer, batches, settings.drop_duplicates))
    return Path(output) if address_of(output) else expanded(output)


def _check_way_place(way: str, output: str | Path) -> None:
    if WAYS[way].looks_at_all and (address := address_of(output)):
        raise ValueError(f"the way {way!r} keeps what it finds: make the set in a folder, and copy it to {address}")


def _prepared(maker: OutlierMaker, folder: Path) -> dict[str, torch.Tensor]:
    """What the way finds out once for a set: from an earlier run into the folder, or now."""
    path = folder / PREPARED
    if not path.exists() and (found := maker.way.prepare(maker)):
        write_bytes(path, save(found))
    return load_file(path) if path.exists() else {}


def make_plan(
    images: ImageSet, pipe: SONAMixin, settings: GenerationSettings, writing: OutputSettings | None = None
) -> Plan:
    """The plan of a run, or of its part, with the similarities of labels where the label choice needs them."""
    writing = writing or OutputSettings()
    plan = _whole_plan(images, pipe, settings, writing)
    if not writing.part:
        return plan
    check_part(writing)
    return share_of(plan, Part.parse(writing.part), int(writing.batch_size or default_batch_size(pipe, settings)))


def _whole_plan(images: ImageSet, pipe: SONAMixin, settings: GenerationSettings, writing: OutputSettings) -> Plan:
    suffix = CODECS[writing.codec].suffix
    if settings.label_choice == "random":
        return plan_outliers(images, settings, suffix=suffix)
    check_settings(images, settings)
    id_prompts = [settings.id_prompt_of(name) for name in images.classes]
    ood_prompts = [settings.ood_prompt_of(label) for label in settings.ood_labels]

    def compare() -> np.ndarray:
        encode = text_encoder(settings.label_encoder) if settings.label_encoder else pipeline_encoder(pipe)
        return similarities(encode, id_prompts, ood_prompts)

    return plan_outliers(images, settings, _on_main_process(process_state(), compare), suffix)


def check_run(images: ImageSet, pipe: SONAMixin, settings: GenerationSettings, writing: OutputSettings) -> None:
    """Raise ValueError if images, pipeline and settings do not go together; nothing is written and no model run."""
    check_settings(images, settings)
    check_output(settings, writing)
    _check_family(pipe, settings.way)
    check_there(images)
    if is_grey_model(pipe) and not is_grey(images):
        raise ValueError("the images are coloured and this model makes grey ones: use a model for colour images")
    size, mode = image_form(pipe, settings.size)
    kept_form(size, writing)
    pixels = pipe.preprocess_image(Image.new(mode, (size, size)))
    check_scheduler(pipe.scheduler, pipe.schedule_of(settings.num_inference_steps, pipe.latent_shape(pixels)))
    check_prompts(images.classes, pipe, settings)


def _check_family(pipe: SONAMixin, way: str) -> None:
    if WAYS[way].needs_unet and not isinstance(pipe, SONAPipeline):
        others = ", ".join(name for name, kind in WAYS.items() if not kind.needs_unet)
        raise ValueError(
            f"the way {way!r} works on the UNet of {SONAPipeline.title}, and this model is of {pipe.title}: take"
            f" another way ({others}), or another model"
        )


def check_output(settings: GenerationSettings, writing: OutputSettings) -> None:
    """Raise ValueError if what is to be written cannot be, whatever the model and the images."""
    check_ranges(writing)
    check_part(writing)
    kept_form(settings.size or writing.save_size or 0, writing)
    asked = checks_asked(settings.reject) & set(BY_CLASSIFIER)
    if asked and not writing.classifier:
        raise ValueError(f"a bound on {' and '.join(sorted(asked))} needs a classifier: name one")
    way = WAYS[settings.way]
    if way.needs_classifier and not writing.classifier:
        raise ValueError(f"the way {settings.way!r} needs a classifier: give the folder of a detector")
    if way.looks_at_all and writing.part:
        raise ValueError(
            f"the way {settings.way!r} looks at all images first: leave `part` out, and make the set at once"
        )


def settled_batch_size(
    pipe: SONAMixin, settings: GenerationSettings, writing: OutputSettings, output: str | Path
) -> int:
    """The batch size, the same in all processes; "auto": that of an earlier run into the folder, or found by trying."""
    if writing.batch_size is None:
        return default_batch_size(pipe, settings)
    if writing.batch_size != "auto":
        return writing.batch_size

    def find() -> int:
        folder = local_copy(output, with_shards=False)
        notes = read_settings(folder).get("notes", {}) if (folder / SETTINGS).exists() else {}
        return notes.get("batch_size") or find_batch_size(pipe, image_form(pipe, settings.size)[0])

    return _on_main_process(process_state(), find)


def settled_model(loading: ModelSettings, output: str | Path) -> ModelSettings:
    """The model's settings with a dtype: if they leave it open, that of an earlier run into the folder, or the default.

    So a set goes on as it was begun, also on a machine with another default. It is the same in all processes.
    """
    if loading.dtype:
        return loading
    state = process_state()

    def find() -> str:
        path = local_copy(output, with_shards=False) / SETTINGS
        record = read_json(path) if path.exists() else {}
        if "dtype" in record.get("notes", {}):
            return last_dtype(record)
        device = usable_device(loading.device or (state.device if state.num_processes > 1 else None))
        return default_dtype(device, is_flow(model_place(loading).family))

    return replace(loading, dtype=_on_main_process(state, find))


def _done(plan: Plan, writer: OutlierWriter, reconstructions: bool) -> np.ndarray:
    """Which images of the plan need nothing more, `[N]` bool."""
    done = writer.done(reconstructions)
    return np.isin(plan.hashes, np.fromiter(done, np.uint64, len(done)))


def _remaining(plan: Plan, is_done: np.ndarray, batch_size: int) -> list[Batch]:
    """The batches still to be made, without what is there."""
    batches = [plan.batch(batch.indices[~is_done[batch.indices]]) for batch in plan.batches(batch_size)]
    return [batch for batch in batches if len(batch.indices)]


def _finish(plan: Plan, writer: OutlierWriter, batches: Sequence[Batch], drop_duplicates: bool) -> None:
    """Finish the set when all batches are in sight, which may take a while on a disk of several machines."""
    deadline = time.monotonic() + SECONDS_UNTIL_IN_SIGHT
    while missing := {batch.name for batch in batches} - writer.committed():
        if time.monotonic() > deadline:
            raise OSError(
                f"{len(missing)} batches that other processes made are not in {writer.folder}: let all processes write"
                " to one folder that they share, and run the same command again"
            )
        time.sleep(1)
    writer.finish(drop_duplicates)
    if batches:
        _check_made(plan, writer.folder, np.concatenate([plan.hashes[batch.indices] for batch in batches]))


def _check_made(plan: Plan, folder: Path, tried: np.ndarray) -> None:
    """Raise ValueError if none of the images with the key hashes `tried` gave an outlier, but one should or has to."""
    rejects = {hash_of(row["file_name"]): row for row in read_rejects(folder)}
    failed = [rejects[int(one)] for one in tried if int(one) in rejects]
    if len(failed) < len(tried):
        return
    if any(map(may_pass, failed)) or np.isin(plan.hashes, np.array(list(rejects), np.uint64)).all():
        kinds = ", ".join(f"{kind} ({count})" for kind, count in reasons_of(failed).most_common(5))
        raise ValueError(
            f"no outlier was made of {len(tried)} images: {kinds}; the first: {failed[0]['reason']}. {folder / REJECTS}"
            " has them all; mend that, and start again"
        )


def _recorded(
    pipe: SONAMixin, settings: GenerationSettings, writing: OutputSettings, form: KeptForm
) -> tuple[dict, dict]:
    """What has to be equal in all runs into one folder, and what is only noted."""
    fixed = identity(pipe) | asdict(settings)
    embeddings = Path(settings.ood_embeddings) if settings.ood_embeddings else None
    if embeddings:
        fixed["ood_embeddings"] = digest(embeddings.read_bytes())
    fixed |= {
        "format": writing.format,
        "save_size": writing.save_size,
        "codec": form.codec,
        "quality": form.quality,
        "reconstructions": writing.reconstructions,
        "classifier": writing.classifier,
    }
    notes = {"batch_size": writing.batch_size, "device": pipe.device.type, "dtype": str(pipe.denoiser.dtype)}
    notes |= {"pipeline": type(pipe).__name__, "model_size": form.model_size, "versions": versions()}
    return fixed, notes | ({"ood_embeddings": embeddings.name} if embeddings else {})


def _note_dtype(path: Path, dtype: str) -> None:
    """Note that a set goes on in another dtype, which is allowed: none leaves a trace, and float16 may overflow."""
    record = read_json(path)
    if (begun := record["notes"].get("dtype", dtype)).split(", ")[-1] != dtype:
        logger.warning("%s was begun in %s, and goes on in %s", path.parent, begun, dtype)
        record["notes"]["dtype"] = f"{begun}, {dtype}"
        write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _on_main_process(state: PartialState, action: Callable[[], Result]) -> Result:
    """What the action gives in the main process; what it raises there is raised in every process."""
    outcome: list = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]
