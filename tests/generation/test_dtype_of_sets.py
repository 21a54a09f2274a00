"""The dtype of an outlier set: found, recorded, and kept where a run goes on elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from pictures import write_sample

from sona_pipeline.cli.app import main
from sona_pipeline.data.outlier_set import read_settings
from sona_pipeline.generation.generate import settled_model
from sona_pipeline.generation.settings import ModelSettings, last_dtype

LINE = "generate --data photos --output out --model tiny --device cpu --ood-labels labels.txt --steps 3 --batch-size 4"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with a few images in it."""
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path / "photos", 4)
    (tmp_path / "labels.txt").write_text("bag\n")
    return tmp_path


def on_a_processor(monkeypatch, multiplies_bfloat16: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": multiplies_bfloat16}, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize(("first", "name"), [(True, "bfloat16"), (False, "float32")])
def test_a_set_goes_on_in_its_dtype_on_another_processor(place, monkeypatch, first, name):
    on_a_processor(monkeypatch, first)
    main(LINE.split())
    made = files(place / "out")
    assert read_settings(place / "out")["notes"]["dtype"] == f"torch.{name}"
    lost = next(path for path in (place / "out" / "outliers").rglob("*.png"))
    lost.unlink()
    on_a_processor(monkeypatch, not first)
    main(LINE.split())
    assert files(place / "out") == made
    assert read_settings(place / "out")["notes"]["dtype"] == f"torch.{name}"


def test_another_dtype_that_is_asked_for_is_said_and_noted(place, monkeypatch, caplog):
    main([*LINE.split(), "--dtype", "bfloat16"])
    before = (place / "out" / "settings.json").read_text()
    main([*LINE.split(), "--dtype", "bfloat16"])
    assert (place / "out" / "settings.json").read_text() == before and not caplog.messages
    main([*LINE.split(), "--dtype", "float32"])
    assert "was begun in torch.bfloat16, and goes on in torch.float32" in " ".join(caplog.messages)
    record = read_settings(place / "out")
    assert record["notes"]["dtype"] == "torch.bfloat16, torch.float32"
    assert {key: record[key] for key in record if key != "notes"} == {
        key: value for key, value in json.loads(before).items() if key != "notes"
    }
    assert last_dtype(record) == "float32"
    assert settled_model(ModelSettings("tiny", device="cpu"), place / "out").dtype == "float32"


@pytest.mark.parametrize("multiplies", [True, False])
def test_dtype_of_a_new_set_is_that_of_the_processor(place, monkeypatch, multiplies):
    on_a_processor(monkeypatch, multiplies)
    open_settings = ModelSettings("tiny", device="cpu")
    assert settled_model(open_settings, place / "new").dtype == ("bfloat16" if multiplies else "float32")
    given = ModelSettings("tiny", device="cpu", dtype="float16")
    assert settled_model(given, place / "new") == given
