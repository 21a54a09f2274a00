"""The images and OOD labels of a generation, opened from where its settings say they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sona_pipeline.common.processes import process_state
from sona_pipeline.data.class_names import Names, finder, names_of_classes
from sona_pipeline.data.image_set import ImageSet, check_there
from sona_pipeline.data.images import open_source
from sona_pipeline.data.remote import address_of
from sona_pipeline.data.settings import ImageSource
from sona_pipeline.generation.generate import check_output
from sona_pipeline.generation.ood_labels import Collision, labels_of
from sona_pipeline.generation.plan import check_settings
from sona_pipeline.generation.settings import (
    GenerationSettings,
    InspectionSettings,
    LabelSettings,
    OutputSettings,
    SourceImages,
)


@dataclass(frozen=True)
class Sources:
    """What outliers are made of.

    Attributes:
        images: the ID images that are asked for.
        id_names: all names of the ID classes.
        settings: with the words for ID classes and the OOD labels.
        collisions: OOD labels that are left out, with the reason.
    """

    images: ImageSet
    id_names: dict[str, Names]
    settings: GenerationSettings
    collisions: list[Collision]

    def left_out(self) -> list[str]:
        """A sentence about the labels that are left out, if there are any."""
        whys = "; ".join(f"{c.label!r} (ID class {c.id_class!r}, {c.reason})" for c in self.collisions)
        return [f"{len(self.collisions)} OOD labels are left out: {whys}"] if whys else []


def open_sources(
    source: SourceImages, choice: LabelSettings, model: str, settings: GenerationSettings, writing: OutputSettings
) -> Sources:
    """Open images and labels, and check that they and the settings go together.

    Args:
        source: where the images are.
        choice: where the OOD labels are.
        model: that the outliers are made by; the embedded one has labels of its own.
        settings: how outliers are made; its words for ID classes stand, unless the images have some of their own.
        writing: what will be written.

    Raises:
        FileNotFoundError: something is not there, such as all images of a list.
        ValueError: images, labels and settings do not go together.
    """
    with process_state().main_process_first():
        images = open_source(source)
    id_names = names_of_classes(images.classes, source.class_names)
    find = finder({} if source.class_names else settings.id_labels)
    labels, collisions = labels_of(choice, model, id_names)
    settings = replace(
        settings,
        ood_labels=labels,
        id_labels={name: find(name) or names[0] for name, names in id_names.items()},
        ood_prompt="{}" if choice.ood_prompts else settings.ood_prompt,
        ood_embeddings=str(choice.ood_embeddings) if choice.ood_embeddings else None,
    )
    check_settings(images, settings)
    check_output(settings, writing)
    images = images.of_classes(source.classes) if source.classes else images
    images = images.drawn(source.limit) if source.limit else images
    check_there(images)
    return Sources(images, id_names, settings, collisions)


def open_inspected(asked: InspectionSettings) -> ImageSet | None:
    """The ID images of an inspection, if it names any.

    Raises:
        ValueError: the set is at an address, where no sheet goes; what else is raised is told by `open_images`.
    """
    if not asked.output and (address := address_of(asked.folder)):
        raise ValueError(f"{address} takes no sheet: say by --output where on this machine the PNG file goes")
    if not asked.data:
        return None
    return open_source(ImageSource(asked.data, asked.split, asked.image_column, asked.label_column, asked.image_root))
