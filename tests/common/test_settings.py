"""What a settings dataclass declares is read from it, and checked."""

import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Interval, Lt
from sona_pipeline.demo.settings import PageSettings

from sona_pipeline.common.settings import Argument, Called, OneOf, check_ranges, settings_of
from sona_pipeline.detection.settings import AskSettings
from sona_pipeline.evaluation.settings import ScoringSettings, TestImages
from sona_pipeline.fitting.settings import FIT
from sona_pipeline.generation import settings as generation
from sona_pipeline.hub import settings as hub
from sona_pipeline.pipelines.guidance import MASK_GRANULARITIES
from sona_pipeline.training import settings as training

KINDS = [
    *(generation.SourceImages, generation.LabelSettings, generation.GenerationSettings, generation.OutputSettings),
    *(generation.ModelSettings, generation.GenerationJob, generation.InspectionSettings),
    *(training.TrainingImages, training.TrainingSettings, training.TrainingJob, training.Running),
    *(TestImages, ScoringSettings, AskSettings, PageSettings, *FIT.values()),
    *(hub.PipelinePush, hub.OutlierPush, hub.DetectorPush, hub.SpacePush, hub.UpstreamSettings),
]


@dataclass(frozen=True)
class Base:
    place: Annotated[Path, Argument()]
    """Where it is."""


@dataclass(frozen=True)
class Example(Base):
    count: Annotated[int, Ge(1), Called("n")] = 5
    """How many
    there are."""
    share: Annotated[float, Interval(gt=0, lt=0.5)] | None = None
    """Part of all."""
    weight: Annotated[float, Ge(0), Lt(math.inf)] = 1.0
    """Of the term."""
    kind: Annotated[str, OneOf(("a", "b"))] = "a"
    """Which."""
    size: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Of a batch."""


def test_name_type_default_range_and_help_come_from_the_field():
    place, count, share, weight, kind, size = settings_of(Example)
    assert (place.name, place.type, place.is_required, place.is_argument) == ("place", Path, True, True)
    assert (count.type, count.default, count.help, count.option) == (int, 5, "How many there are.", "--n")
    assert (count.bounds, share.bounds, weight.bounds) == ("1 or more", "above 0 and below 0.5", "0 or more")
    assert (share.type, share.is_optional, count.is_optional) == (float, True, False)
    assert (kind.choices, count.choices, size.words) == (("a", "b"), (), ("auto",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "`count` is 0, but has to be 1 or more"),
        ({"count": None}, "`count` is None, but has to be 1 or more"),
        ({"share": 0.5}, "`share` is 0.5, but has to be above 0 and below 0.5"),
        ({"share": math.nan}, "`share` is nan"),
        ({"weight": math.inf}, "`weight` is inf, but has to be 0 or more"),
        ({"kind": "c"}, "`kind` is 'c', but has to be one of a, b"),
        ({"size": 0}, "`size` is 0, but has to be 1 or more or auto"),
        ({"size": "many"}, "`size` is 'many'"),
    ],
)
def test_values_out_of_their_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        check_ranges(Example(Path("x"), **change))


@pytest.mark.parametrize("change", [{}, {"share": None}, {"share": 0.49}, {"size": 1}, {"size": "auto"}, {"kind": "b"}])
def test_values_in_their_range_are_not(change):
    check_ranges(Example(Path("x"), **change))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_setting_of_the_package_is_explained_and_its_default_in_range(kind):
    for setting in settings_of(kind):
        assert setting.help.endswith(".") and len(setting.help) > 8
    required = {field.name: () for field in fields(kind) if field.default is field.default_factory is MISSING}
    check_ranges(kind(**required))


def test_granularities_are_those_of_the_pipeline():
    assert generation.MASK_GRANULARITIES == MASK_GRANULARITIES
