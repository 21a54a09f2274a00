"""The benchmark of half precision: it finds a trace where one is put, and none where there is none."""

import json
from pathlib import Path

import pytest
import torch
from benchmark_modules import modules_of

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def half():
    with modules_of(BENCHMARKS) as modules:
        yield modules.half_precision


def images(seed: int = 0, count: int = 40) -> torch.Tensor:
    """Smooth images `[N, 1, 16, 16]` of 8 bits."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=16, mode="bicubic") * 200 + 20).clamp(0, 255).to(torch.uint8)


def test_faint_noise_is_found_and_no_noise_is_chance(half, monkeypatch):
    monkeypatch.setattr(half, "TRAINING_STEPS", 120)
    plain = images()
    noise = torch.randint(-4, 5, plain.shape, generator=torch.Generator().manual_seed(1))
    assert half.auroc(plain, (plain.int() + noise).clamp(0, 255).to(torch.uint8), 0) > 90
    assert half.auroc(plain, plain.clone(), 0) == pytest.approx(50)


def test_every_way_is_measured(half, monkeypatch, tmp_path):
    for name, value in {"STEPS": 2, "BATCH": 3, "TRAINING_STEPS": 2, "PAIRS": 2}.items():
        monkeypatch.setattr(half, name, value)
    half.main(output=tmp_path, images=4, seeds=2)
    rows = json.loads((tmp_path / "run.json").read_text())["rows"]
    assert [(row["way"], row["images"]) for row in rows] == [(way, kind) for way in half.WAYS for kind in half.KINDS]
    by_half, *_ = rows
    assert by_half["images"] == "round trips" and by_half["pixels that differ"] == 0
    assert all(len(row["auroc"]) == (2 if row["pixels that differ"] else 0) for row in rows)
    page = (tmp_path / "results.md").read_text()
    assert all(f"| {way} |" in page for way in half.WAYS) and "the same files" in page


def test_latents_are_rounded_where_a_way_says_so(half, monkeypatch):
    monkeypatch.setattr(half, "STEPS", 2)
    found = {denoiser: half.made(denoiser, 2) for denoiser in (half.WHOLE, half.HALF, half.ROUNDED)}
    for kind in half.KINDS:
        is_rounded = {one: torch.equal(some[kind], some[kind].bfloat16().float()) for one, some in found.items()}
        assert is_rounded == {half.WHOLE: False, half.HALF: False, half.ROUNDED: True}
