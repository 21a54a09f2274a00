"""The page as a visitor has it: served by `sona demo`, in a browser and through gradio's client."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from sona_pipeline import TINY_DETECTOR, load_detector, load_pipeline
from sona_pipeline.data import sample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
MINUTE = 60_000
NEAREST = Image.Resampling.NEAREST


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> str:
    """Address of a page that `sona demo` serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "sona_pipeline", "demo", "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while True:
        assert server.poll() is None and time.monotonic() < deadline, "the page is not served"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/"
    assert list(temporary.glob("sona-page-*/gradio/*"))
    server.terminate()
    server.wait(30)
    assert not list(temporary.glob("sona-*"))


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if "CI" in os.environ:
            pytest.fail("there is no Chromium: install it")
        pytest.skip("there is no Chromium to look at the page with")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, url):
    """The page in a window of a desktop; an error in its scripts, or of the server, fails the test."""
    page, errors = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    page.on("pageerror", lambda error: errors.append(error))
    page.on("response", lambda response: errors.append(response.url) if response.status >= 500 else None)
    page.set_default_timeout(MINUTE)
    page.goto(url)
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible(timeout=MINUTE)
    yield page
    page.close()
    assert not errors


def pick_trouser(page: Page) -> None:
    """Pick the second example."""
    page.locator("#examples tr", has_text="trouser").click()
    expect(page.locator("#id-label textarea, #id-label input")).to_have_value("trouser")


def run_example(page: Page) -> None:
    """Pick an example that is not on the page, run it, and wait for its end."""
    pick_trouser(page)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#status")).to_contain_text("trouser → sandal, noised up to step 35 of 50", timeout=MINUTE)


def picture(page: Page, name: str) -> np.ndarray:
    """The pixels of an image on the page."""
    source = page.locator(f"#{name} img").last.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"), dtype=int)


def test_page_opens_with_an_example_that_is_what_the_pipeline_makes(page):
    expect(page.locator("#status")).to_contain_text("t-shirt → bag, noised up to step 35 of 50", timeout=MINUTE)
    expect(page.locator("#id-label textarea, #id-label input")).to_have_value("t-shirt")
    expect(page.locator("#ood-label input")).to_have_value("bag")
    images, detector = sample.id_images("test"), load_detector(TINY_DETECTOR, "cpu")
    source = images.image(images.labels.index(images.classes.index("t-shirt")))
    prompts = {"id_prompt": "a photo of a t-shirt", "ood_prompt": "a photo of a bag"}
    made = load_pipeline("tiny")(source, **prompts, strength=0.7, generator=torch.Generator().manual_seed(0)).images[0]
    shown = Image.fromarray(picture(page, "before-after").astype(np.uint8)).convert("L").resize((32, 32), NEAREST)
    assert np.abs(np.asarray(shown, dtype=int) - np.asarray(made, dtype=int)).max() <= 1
    for side, image in (("source", source), ("outlier", made)):
        assert f"energy {detector(image).energy:.2f}" in page.locator(f"#verdict-{side}").inner_text()
    assert all(picture(page, f"strength-{place}").std() > 20 for place in range(1, 9))
    assert picture(page, "strip").std() > 20
    expect(page.locator("#shares-note")).to_contain_text(
        "lambda = 0.2: a mask takes 20 % of the entries of each of the 4"
    )

    mask = page.locator("#mask-id_semantic_mask img")
    before = mask.get_attribute("src")
    page.locator("#step input[type=range]").press("Home")
    expect(mask).not_to_have_attribute("src", before, timeout=MINUTE)


def test_visitor_runs_an_example_and_looks_at_its_masks(page, tmp_path):
    run_example(page)
    for name in ("strength-1", "verdict-plot"):
        expect(page.locator(f"#{name} img")).to_have_count(0)
    expect(page.locator("#verdict-source")).to_have_text("")
    assert page.locator("#before-after img").count() == 2
    for name in ("global-guidance", "text-only"):
        assert picture(page, name).std() > 20

    mask = page.locator("#mask-id_semantic_mask img")
    before, shown = picture(page, "mask-id_semantic_mask"), mask.get_attribute("src")
    page.locator("#step input[type=range]").press("Home")
    expect(mask).not_to_have_attribute("src", shown, timeout=MINUTE)
    after = picture(page, "mask-id_semantic_mask")
    assert before.shape == after.shape == (256, 256, 3)
    assert np.abs(before - after).max() > 50
    unfiltered, filtered = (picture(page, f"mask-{name}") for name in ("ood_unfiltered_mask", "ood_semantic_mask"))
    assert not np.array_equal(unfiltered, filtered)
    assert picture(page, "strip").std() > 20

    with page.expect_download() as event:
        page.locator("#download").click()
    event.value.save_as(tmp_path / "sona.zip")
    with zipfile.ZipFile(tmp_path / "sona.zip") as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "run")
    assert {"source.png", "outlier.png", "global-guidance.png", "text-only.png", "strip.png", "settings.json"} <= {
        *names
    }
    assert sum(name.startswith("masks/") for name in names) == 4 * 35
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["stop_step"] == settings["steps_done"] == 35
    subprocess.run([sys.executable, "again.py"], cwd=tmp_path / "run", check=True)
    again, outlier = (np.asarray(Image.open(tmp_path / "run" / f"{name}.png")) for name in ("again", "outlier"))
    assert np.array_equal(again, outlier)

    page.locator("#ask-detector").click()
    said = load_detector(TINY_DETECTOR, "cpu")(tmp_path / "run" / "outlier.png")
    expect(page.locator("#verdict-outlier")).to_contain_text(f"energy {said.energy:.2f}", timeout=MINUTE)
    expect(page.locator("#verdict-plot img")).to_be_visible()
    page.locator("#over-strengths").click()
    expect(page.locator("#status")).to_contain_text("trouser → sandal at 8 strengths", timeout=MINUTE)
    assert np.abs(picture(page, "strength-1") - picture(page, "strength-8")).max() > 50


def test_stop_ends_a_run_after_the_step_it_is_at(page):
    pick_trouser(page)
    page.get_by_role("button", name=re.compile("^Settings")).click()
    page.wait_for_timeout(1000)  # the settings take their first values while they unfold
    for label, value in (("Strength", "1"), ("Steps of the full schedule", "100")):
        slider = page.get_by_label(re.compile(f"range slider for {label}"))
        slider.press("End")
        expect(slider).to_have_value(value)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Step ", timeout=MINUTE)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("stopped after", timeout=MINUTE)
    done, total = re.search(r"stopped after (\d+) of (\d+)", page.locator("#status").inner_text()).groups()
    assert 1 <= int(done) < int(total) == 100
    run_again = page.get_by_role("button", name="Run", exact=True)
    run_again.click()
    expect(page.locator("#status")).to_contain_text("noised up to step 100 of 100", timeout=MINUTE)


def test_an_empty_seed_is_answered_by_a_message(page):
    pick_trouser(page)
    page.get_by_role("button", name=re.compile("^Settings")).click()
    page.wait_for_timeout(1000)  # the settings take their first values while they unfold
    page.get_by_label("Seed", exact=True).fill("")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("'Seed' is empty: give a number from 0 to 2147483647.")).to_be_visible(timeout=MINUTE)


def test_upload_that_is_no_image_is_answered_by_a_message(page, tmp_path):
    (tmp_path / "notes.png").write_text("this is no picture")
    page.locator("#source").get_by_role("button", name="Remove Image").click()
    page.locator("#source input[type=file]").set_input_files(tmp_path / "notes.png")
    page.locator("#id-label textarea, #id-label input").fill("cat")
    page.locator("#ood-label input").fill("dog")
    page.locator("#ood-label input").press("Enter")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("cannot be read as an image")).to_be_visible(timeout=MINUTE)


def test_image_is_scored_by_the_detector(page):
    page.get_by_role("tab", name="Detector").click()
    panel = page.get_by_role("tabpanel").filter(has_text="The detector knows")
    expect(panel).to_contain_text("t-shirt, trouser, pullover, dress, shirt, sneaker")
    panel.locator(".gallery-item").nth(2).click()  # an ankle boot
    expect(page.locator("#scored img")).to_be_visible(timeout=MINUTE)
    page.locator("#score").click()
    said = load_detector(TINY_DETECTOR, "cpu")(sample.near_ood()["ankle boot"].image(40))
    assert said.is_ood
    expect(page.locator("#verdict")).to_contain_text(f"never seen the like (OOD): {said.label}", timeout=MINUTE)
    assert picture(page, "cam").std() > 20


def test_narrow_screen_has_nothing_beside_it(browser, url):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(url)
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible(timeout=MINUTE)
    run_example(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    for name in ("mask-id_semantic_mask", "strength-8", "verdict-outlier", "examples"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.close()


# Through gradio's client


@pytest.fixture(scope="module")
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.fixture
def source(tmp_path) -> Path:
    """A sneaker of the sample's test images."""
    images = sample.id_images("test")
    images.image(images.labels.index(images.classes.index("sneaker"))).save(tmp_path / "a snéaker.png")
    return tmp_path / "a snéaker.png"


def outlier_of(client: Client, path: Path, **changes) -> tuple:
    """What the page gives for a run; pictures are paths of files."""
    labels = {"id_label": "sneaker", "ood_label": "bag"}
    settings = {"is_random": False, "strength": 0.6, "steps": 20, "compares": True, "seed": 3}
    return client.predict(path=handle_file(str(path)), api_name="/make_outlier", **labels | settings | changes)


@pytest.mark.parametrize("strength", [0.6, None])
def test_pictures_are_those_of_the_pipeline(client, source, strength):
    changes = {"is_random": True} if strength is None else {"strength": strength}
    _, (_, outlier), global_guidance, text_only, *_ = outlier_of(client, source, **changes)
    pipe = load_pipeline("tiny")
    prompts = {"id_prompt": "a photo of a sneaker", "ood_prompt": "a photo of a bag", "num_inference_steps": 20}

    def made(image, **settings):
        generator = torch.Generator().manual_seed(3)
        return pipe(image, generator=generator, **prompts, **settings).images[0]

    wanted = {
        outlier: made(Image.open(source), strength=strength),
        global_guidance: made(Image.open(source), strength=strength, global_guidance=True),
        text_only: made(torch.zeros(1, 4, 8, 8), strength=1.0, global_guidance=True),
    }
    for path, image in wanted.items():
        shown = Image.open(path).convert("L")
        pixels = np.asarray(shown.resize((32, 32), NEAREST), dtype=int)
        assert np.abs(pixels - np.asarray(image, dtype=int)).max() <= 1


def test_two_visitors_at_once_have_each_their_own_outlier_verdict_and_row(url, client, source, tmp_path):
    other, images = Client(url, verbose=False), sample.id_images("test")
    images.image(0).save(tmp_path / "other.png")
    files = {client: source, other: tmp_path / "other.png"}
    for name in ("ask_detector", "over_strengths"):
        with pytest.raises(AppError, match="There is no outlier yet: press Run"):
            other.predict(api_name=f"/{name}")
    settings = {"id_label": "sneaker", "ood_label": "bag", "strength": 0.6, "steps": 6, "compares": False, "seed": 3}
    jobs = {
        visitor: visitor.submit(path=handle_file(str(path)), api_name="/make_outlier", **settings)
        for visitor, path in files.items()
    }
    for job in jobs.values():
        job.result(180)
    rows = {visitor: visitor.submit(api_name="/over_strengths") for visitor in files}
    pipe, detector = load_pipeline("tiny"), load_detector(TINY_DETECTOR, "cpu")
    prompts = {"id_prompt": "a photo of a sneaker", "ood_prompt": "a photo of a bag", "num_inference_steps": 6}
    for visitor, path in files.items():

        def made(strength, path=path):
            generator = torch.Generator().manual_seed(3)
            return pipe(Image.open(path), generator=generator, strength=strength, **prompts).images[0]

        verdicts = visitor.predict(api_name="/ask_detector")[:2]
        for image, verdict in zip((Image.open(path), made(0.6)), verdicts):
            assert f"energy {detector(image).energy:.2f}" in verdict
        _, *row = rows[visitor].result(180)
        assert row[0] is None  # an eighth of six steps is none
        for strength, file in zip((0.25, 0.5, 1.0), (row[1], row[3], row[7])):
            shown = np.asarray(Image.open(file).convert("L").resize((32, 32), NEAREST), dtype=int)
            assert np.abs(shown - np.asarray(made(strength), dtype=int)).mean() < 2  # in a batch a mask may differ
        assert np.abs(shown - np.asarray(made(0.25), dtype=int)).mean() > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1000}, "'Steps of the full schedule' is 1000: give a number from 1 to 100"),
        ({"steps": None}, "'Steps of the full schedule' is empty: give a number from 1 to 100"),
        ({"guidance_scale": 1e9}, "'Guidance scale' is 1000000000.0: give a number from 0 to 30.0"),
        ({"guidance_scale": None}, "'Guidance scale' is empty: give a number from 0 to 30.0"),
        ({"mask_threshold": 0.5}, "'Mask threshold' is 0.5: give a number from 0.01 to 0.49"),
        ({"mask_threshold": None}, "'Mask threshold' is empty: give a number from 0.01 to 0.49"),
        ({"strength": None}, "'Strength' is empty: give a number from 0.02 to 1.0"),
        ({"strength": 0.03}, "`strength` 0.03 is less than one of 20 steps"),
        ({"seed": -1}, "'Seed' is -1: give a number from 0 to 2147483647"),
        ({"seed": None}, "'Seed' is empty: give a number from 0 to 2147483647"),
        ({"seed": "one"}, "'Seed' is 'one': give a number from 0 to 2147483647"),
        ({"mask_granularity": "pixel"}, "pixel"),
        ({"ood_label": "x" * 81}, "The OOD label has 81 characters, but at most 80 are taken"),
        ({"id_label": " "}, "The ID label is empty"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_rule(client, source, changes, message):
    with pytest.raises(AppError, match=re.escape(message)):
        outlier_of(client, source, **changes)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "CMYK"])
def test_images_of_any_mode_are_taken(client, tmp_path, mode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    path = tmp_path / f"one.{form.lower()}"
    Image.new("L", (40, 30), 90).convert("L" if mode == "I;16" else mode).convert(mode).save(path, form)
    status, (shown, _), *_ = outlier_of(client, path, steps=5, compares=False)
    assert "noised up to step 3 of 5" in status
    assert Image.open(shown).size[0] >= 400


def test_too_large_an_image_is_refused(client, tmp_path):
    for side in (5000, 8000):
        Image.new("1", (side, side)).save(tmp_path / "large.png")
        with pytest.raises(AppError, match="too many pixels: at most 16 million are taken"):
            outlier_of(client, tmp_path / "large.png")
    (tmp_path / "heavy.png").write_bytes(bytes(11 << 20))
    with pytest.raises(Exception, match=r"413|too large|exceeds|maximum"):
        outlier_of(client, tmp_path / "heavy.png")


def test_files_of_the_machine_and_other_addresses_are_out_of_reach(url, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("L", (8, 8)).save(secret)
    assert httpx.get(f"{url}gradio_api/file={secret}").status_code in (403, 404)
    assert httpx.get(f"{url}gradio_api/file=/etc/passwd").status_code in (403, 404)
    for path in (str(secret), "http://example.com/one.png"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = httpx.post(f"{url}gradio_api/call/score_image", json={"data": [file]}).json()["event_id"]
        answer = httpx.get(f"{url}gradio_api/call/score_image/{event}", timeout=60).text
        assert "event: error" in answer and "event: complete" not in answer
        assert path == str(secret) or "Addresses are not taken" in answer


def test_nobody_passes_by_the_queue(url):
    for name in ("score_image", "make_outlier"):
        assert httpx.post(f"{url}gradio_api/run/{name}", json={"data": []}).status_code == 404


def test_masks_are_streamed_while_a_run_goes_on(client, source):
    labels = {"id_label": "sneaker", "ood_label": "bag"}
    settings = {"is_random": False, "strength": 1.0, "steps": 100, "compares": False}
    job = client.submit(path=handle_file(str(source)), api_name="/make_outlier", **labels, **settings)
    job.result(180)
    streamed = [output for output in job.outputs() if str(output[0]).startswith("Step ")]
    assert len(streamed) >= 2
    position = next(k for k, value in enumerate(streamed[0]) if str(value).endswith(".png"))
    one, other = (np.asarray(Image.open(output[position]), dtype=int) for output in streamed[:2])
    assert np.abs(one - other).max() > 20


def test_suggested_labels_follow_the_rule(client):
    seen = {client.predict("t-shirt", api_name="/suggest_random") for _ in range(12)}
    assert len(seen) > 1 and "t-shirt" not in seen
    assert client.predict("t-shirt", api_name="/suggest_close") != client.predict("t-shirt", api_name="/suggest_far")
    with pytest.raises(AppError, match="The ID label is empty"):
        client.predict(" ", api_name="/suggest_close")


def test_score_is_that_of_the_detector(client, source):
    verdict, _, _ = client.predict(handle_file(str(source)), api_name="/score_image")
    said = load_detector(TINY_DETECTOR, "cpu")(source)
    assert f"{said.label} with confidence {said.confidence:.1%}, energy {said.energy:.2f}" in verdict
