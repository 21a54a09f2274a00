"""The parts of the page that need no page."""

import re
import time
from importlib.metadata import requires
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from PIL import Image
from sona_pipeline.demo import worked_example
from sona_pipeline.demo.detector_tab import verdict
from sona_pipeline.demo.masks_tab import Shown, note_of
from sona_pipeline.demo.page import build
from sona_pipeline.demo.pictures import COLOURS, COLUMNS, MARGIN, TILE, enlarged, overlay, strip
from sona_pipeline.demo.tracing import MASKS, STRENGTHS, Request, Runner, Trace
from sona_pipeline.demo.worked_example import WorkedExample
from sona_pipeline.demo.worker import Worker
from tiny_family import known, save_as_diffusers, tiny_flow

from sona_pipeline import TINY_DETECTOR, Detection, embedded_labels, keep_neighbours, load_detector, sample
from sona_pipeline.data.class_names import imagenet_labels

DEMO = Path(__file__).parents[2] / "demo"


def test_requirements_of_the_space_are_those_of_the_package():
    wanted = {Requirement(line) for line in requires("sona-pipeline")}
    needed = {one for one in wanted if one.marker is None or one.marker.evaluate({"extra": "explain"})}
    listed = {Requirement(line) for line in (DEMO / "requirements.txt").read_text().split("\n") if line}
    assert {(one.name, one.specifier) for one in listed} == {(one.name, one.specifier) for one in needed}


def test_card_of_the_space_is_one():
    card = SpaceCard.load(DEMO / "README.md")
    assert card.data.sdk == "gradio" and (DEMO / card.data.app_file).is_file()
    (gradio,) = (one for one in map(Requirement, requires("sona-pipeline")) if one.name == "gradio")
    assert gradio.specifier.contains(card.data.sdk_version)
    assert len(card.data.short_description) <= 60


def test_overlay_is_the_image_where_there_is_no_mask_and_mostly_the_colour_where_it_is_full():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    share = np.array([[0.0, 1.0], [0.5, 0.0]])
    seen = np.asarray(overlay(image, share, (255, 0, 0)), dtype=float)
    plain = np.repeat(np.asarray(image, dtype=float)[..., None], 3, axis=2)
    for part, alpha in (((slice(0, 4), slice(4, 8)), 200 / 255), ((slice(4, 8), slice(0, 4)), 100 / 255)):
        wanted = (1 - alpha) * plain[part] + alpha * np.array([255.0, 0, 0])
        assert np.abs(seen[part] - wanted).max() <= 1
    assert np.array_equal(seen[:4, :4], plain[:4, :4]) and np.array_equal(seen[4:, 4:], plain[4:, 4:])


@pytest.mark.parametrize(
    ("size", "wanted"), [((32, 32), (256, 256)), ((300, 400), (300, 400)), ((100, 50), (600, 300))]
)
def test_small_images_are_enlarged_by_whole_pixels(size, wanted):
    assert enlarged(Image.new("L", size)).size == wanted


def test_strip_has_every_step_in_bands():
    count = COLUMNS + 3
    greys = [Image.new("L", (16, 16), 5 * k) for k in range(count)]
    masks = {name: [np.full((2, 2), k % 2) for k in range(count)] for name in MASKS}
    sheet = np.asarray(strip(greys, range(count, 0, -1), masks, MASKS))
    band = sheet.shape[0] // 2
    assert sheet.shape[1] == MARGIN + COLUMNS * TILE
    for k in range(count):
        x, y = MARGIN + k % COLUMNS * TILE + 20, k // COLUMNS * band + 18 + 20
        assert sheet[y, x].tolist() == [5 * k] * 3
        for row, name in enumerate(MASKS, start=1):
            distance = np.abs(sheet[y + row * TILE, x].astype(int) - COLOURS[name]).max()
            assert distance == np.abs(5 * k - np.array(COLOURS[name])).max() if k % 2 == 0 else distance < 60


def test_share_of_the_image_counts_places_with_the_mask_in_any_channel():
    trace = Trace(Image.new("L", (8, 8)), Request("a", "b"))
    mask = torch.zeros(1, 3, 2, 2)
    mask[0, 0, 0, 0] = mask[0, 1, 0, 0] = mask[0, 2, 1, 1] = 1
    trace.add(7, {"latents": torch.zeros(1, 3, 2, 2), **dict.fromkeys(MASKS, mask)})
    trace.add(6, {"latents": torch.zeros(1, 3, 2, 2), **dict.fromkeys(MASKS, 0 * mask)})
    assert trace.stop_step == 7 and len(trace) == 2
    half = Trace(trace.source, trace.request, masks={**trace.masks, "id_semantic_mask": [mask[0, 0].numpy()] * 3})
    assert len(half) == 2
    assert trace.covered("id_semantic_mask") == [50.0, 0.0]
    assert np.allclose(trace.masks["id_semantic_mask"][0], [[2 / 3, 0], [0, 1 / 3]])


@pytest.fixture
def worker():
    with Worker() as worker:
        yield worker


@pytest.fixture
def runner(tiny_pipe, worker):
    return Runner(tiny_pipe, worker)


def test_a_stop_is_for_what_its_visitor_asked_for_before(runner):
    source, request = Image.new("RGB", (32, 32), "grey"), Request("a", "b", strength=1.0, num_inference_steps=8)
    steps = runner.trace(source, request, runner.stops("one", time.monotonic()))
    next(steps)
    runner.stop("two")
    assert list(steps)[-1].outlier is not None

    waiting = running = runner.stops("one", time.monotonic())
    steps = runner.trace(source, request, running)
    next(steps)
    runner.stop("one")
    *_, trace = steps
    assert trace.outlier is None and len(trace) < 8
    assert not list(runner.trace(source, request, waiting))
    assert not runner.compare(source, request, waiting)
    assert list(runner.trace(source, request, runner.stops("one", time.monotonic())))[-1].outlier is not None


def test_a_run_that_nobody_looks_at_any_more_ends_without_being_waited_for(runner):
    calls, gate = [], Event()

    def hold(*args):
        calls.append(1)
        if len(calls) > 1:
            gate.wait(60)

    runner.pipe.unet.register_forward_hook(hold)
    request = Request("a", "b", strength=1.0, num_inference_steps=400)
    steps = runner.trace(Image.new("RGB", (32, 32)), request, lambda: False)
    next(steps)
    steps.close()
    gate.set()
    assert len(list(runner.decoded([torch.zeros(4, 8, 8)] * 5))) == 5
    assert len(calls) < 400


def test_errors_of_the_pipeline_come_out_of_the_run(runner):
    with pytest.raises(ValueError, match=r"`mask_threshold` is 0\.5"):
        list(runner.trace(Image.new("RGB", (32, 32)), Request("a", "b", mask_threshold=0.5), lambda: False))


def test_end_of_the_worker_ends_the_run_it_is_at(tiny_pipe):
    calls = []
    tiny_pipe.unet.register_forward_hook(lambda *args: calls.append(1))
    worker = Worker()
    request = Request("a", "b", strength=1.0, num_inference_steps=400)
    steps = Runner(tiny_pipe, worker).trace(Image.new("RGB", (32, 32)), request, lambda: False)
    next(steps)
    worker.shutdown()
    *_, trace = steps
    assert trace.outlier is None and len(calls) < 400


def test_worked_example_makes_room_for_whoever_waits_and_is_made_later(monkeypatch):
    monkeypatch.setattr(worked_example, "PAUSE", 0.01)
    begun, tries = Event(), []

    def make(is_stopped):
        def job():
            begun.set()
            while not is_stopped() and not tries:
                time.sleep(0.001)

        worker.submit(job).result()
        tries.append(1)
        return {"tries": len(tries)}

    with Worker() as worker:
        worked = WorkedExample(make, worker)
        worked.start()
        assert begun.wait(60) and not worked.is_over
        assert worker.submit(lambda: "a visitor's").result(60) == "a visitor's"
        deadline = time.monotonic() + 60
        while not worked.is_over:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert worked.outcome == {"tries": 2}


def test_worked_example_that_fails_is_over_and_empty(caplog):
    with Worker() as worker:
        worked = WorkedExample(lambda is_stopped: 1 / 0, worker)
        worked._make_in_the_end()
    assert worked.is_over and worked.outcome == {} and "division by zero" in caplog.text


def test_images_over_strengths_are_those_of_single_calls(runner):
    source, request = Image.new("RGB", (32, 32), "grey"), Request("a", "b", num_inference_steps=7, seed=5)
    made = runner.over_strengths(source, request, lambda: False)
    assert list(made) == [strength for strength in STRENGTHS if strength >= 0.25]  # an eighth of seven steps is none
    for strength in (0.25, 1.0):
        alone = Request("a", "b", strength, num_inference_steps=7, seed=5)
        *_, trace = runner.trace(source, alone, lambda: False)
        difference = np.asarray(made[strength], dtype=int) - np.asarray(trace.outlier, dtype=int)
        assert np.abs(difference).max() <= 1
    assert not runner.over_strengths(source, request, lambda: True)


@pytest.mark.parametrize("granularity", ["channel", "all", "spatial"])
def test_shares_of_the_image_lie_where_the_note_below_the_plot_says(runner, granularity):
    request = Request("a", "b", strength=1.0, num_inference_steps=4, mask_threshold=0.25, mask_granularity=granularity)
    *_, trace = runner.trace(Image.effect_noise((32, 32), 50).convert("RGB"), request, lambda: False)
    note = note_of(request, channels=4)
    low, *high = [float(number) for number in re.findall(r"([\d.]+) %", note)][1:] or [25.0]
    assert low == 25 and f"lambda = {request.mask_threshold}" in note
    for share in trace.covered("id_semantic_mask"):
        assert low <= share <= (high[0] if high else low)


def test_page_of_the_model_for_colour_shows_what_it_drew_and_suggests_labels_it_knows(worker):
    blocks = build(worker, "cifar", device="cpu")
    (examples,) = (block for block in blocks.blocks.values() if isinstance(block, gr.Dataset))
    assert [row[1] for row in examples.raw_samples] == embedded_labels("cifar")[:10]
    drawn = [np.asarray(Image.open(row[0])) for row in examples.raw_samples]
    assert all(pixels.shape == (32, 32, 3) and pixels.std() > 10 for pixels in drawn)
    functions = {event.api_name: event.fn for event in blocks.fns.values()}
    assert functions["suggest_close"]("cat") in embedded_labels("cifar")


def test_page_of_another_checkpoint_takes_its_size_and_suggests_labels_of_imagenet(worker, tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "model")
    blocks = build(worker, str(tmp_path / "model"), device="cpu")
    functions = {event.api_name: event.fn for event in blocks.fns.values()}
    assert "score_image" not in functions
    labels = {functions["suggest_close"]("goldfish") for _ in range(5)}
    assert labels <= {names[0] for names in imagenet_labels()} and "goldfish" not in labels

    Image.new("RGB", (50, 40), "teal").save(tmp_path / "one.png")
    visit = SimpleNamespace(session_hash="one")
    settings = [False, 0.5, 6, 10, 0.2, "spatial", ["add_ood_semantics"], 1, False, "source", None]
    *_, last = functions["make_outlier"](str(tmp_path / "one.png"), "a", "b", *settings, visit)
    (shown,) = (value for value in last.values() if isinstance(value, Shown))
    assert len(shown.trace) == 3 and shown.trace.source.size == (32, 32) and shown.trace.source.mode == "RGB"
    assert not shown.trace.request.remove_id_semantics and shown.trace.request.add_ood_semantics


def test_page_of_another_family_shows_masks_of_all_its_channels(worker, tmp_path):
    save_as_diffusers(tiny_flow(), tmp_path / "model")
    with known():
        blocks = build(worker, str(tmp_path / "model"), device="cpu")
    functions = {event.api_name: event.fn for event in blocks.fns.values()}
    assert functions["suggest_far"]("goldfish") in {names[0] for names in imagenet_labels()}
    Image.new("RGB", (50, 40), "teal").save(tmp_path / "one.png")
    settings = [False, 0.5, 6, 10, 0.2, "channel", ["add_ood_semantics"], 1, True, "source", None]
    visit = SimpleNamespace(session_hash="one")
    *_, last = functions["make_outlier"](str(tmp_path / "one.png"), "a", "b", *settings, visit)
    (shown,) = (value for value in last.values() if isinstance(value, Shown))
    assert len(shown.trace) == 3 and shown.trace.outlier.size == (32, 32)
    assert any(isinstance(value, str) and "each of the 4 channels" in value for value in last.values())
    compared = Runner(tiny_flow(), worker).compare(shown.trace.source, shown.trace.request, lambda: False)
    assert [picture.size for picture in compared.values()] == [(32, 32)] * 2


@pytest.mark.parametrize("score", ["energy", "msp", "energy+knn"])
def test_verdict_names_the_score_that_the_threshold_is_for(score):
    detector = load_detector(TINY_DETECTOR, "cpu")
    if score == "energy+knn":
        known = sample.id_images("validation")
        detector = keep_neighbours(detector, known.take(range(20)), known.take(range(20, 30)), shown=False)
    said = Detection("<shirt>", 0.5, -9.25, 1.75, True)
    assert verdict(detector.with_settings(score=score), said) == (
        f"<b>never seen the like (OOD)</b>: &lt;shirt&gt; with confidence 50.0%, {score} 1.75"
    )
