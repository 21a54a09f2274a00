"""Batches made by processes side by side give what stages in one process give, and end as they do."""

import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from outlier_sets import contents

from sona_pipeline.data import sample
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import read_rejects
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.generation.batches import by_stages, default_batch_size, make_batches, processes_for, short_ones_last
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.generate import generate_outliers
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import Batch, plan_outliers
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings

SETTINGS = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=4)
SINGLY = OutputSettings(batch_size=1)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu")


@pytest.fixture(scope="module")
def images():
    return sample.id_images("train").take(range(10))


@pytest.fixture
def two_threads():
    earlier = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(earlier)


def with_a_bad_image(images: ImageSet, error: Exception) -> ImageSet:
    def opened(index):
        if index == 4:
            raise error
        return images.image(index)

    return replace(images, _open=opened)


def test_there_is_a_process_for_each_thread_but_none_for_large_images(pipe, images, two_threads):
    maker = OutlierMaker(pipe, plan_outliers(images, SETTINGS))
    assert [processes_for(maker, batches) for batches in (0, 1, 7, 8, 99)] == [1, 1, 1, 2, 2]
    large = OutlierMaker(pipe, plan_outliers(images, replace(SETTINGS, size=96)))
    assert processes_for(large, 99) == 1
    assert (default_batch_size(pipe, SETTINGS), default_batch_size(pipe, replace(SETTINGS, size=96))) == (64, 16)


def test_short_batches_come_last_and_the_shortest_at_the_very_end():
    stop_steps = np.array([5, 1, 9, 3, 7, 2])
    batches = [Batch(str(step), np.array([k])) for k, step in enumerate(stop_steps)]
    assert [batch.name for batch in short_ones_last(batches, stop_steps, 3)] == ["5", "9", "7", "3", "2", "1"]
    assert short_ones_last(batches, stop_steps, 0) == batches


def test_processes_make_the_set_that_one_makes(pipe, images, tmp_path, two_threads):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    bad = with_a_bad_image(images, OSError("torn"))
    generate_outliers(bad, pipe, tmp_path / "two", SETTINGS, SINGLY)
    assert torch.rand(1) == expected, "torch's own generator was drawn from"
    assert [row["reason"] for row in read_rejects(tmp_path / "two")] == ["torn"]
    torch.set_num_threads(1)
    generate_outliers(bad, pipe, tmp_path / "one", SETTINGS, SINGLY)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_vae_may_work_in_threads_of_its_own(pipe, images):
    plan = plan_outliers(images, SETTINGS)
    alone, beside = (list(by_stages(OutlierMaker(pipe, plan), plan.batches(3), vae_depth=depth)) for depth in (0, 1))
    assert len(alone) == 4
    assert beside == alone


def test_images_are_read_by_the_process_that_opened_them(pipe, images, tmp_path, two_threads):
    opener = os.getpid()

    def opened(index):
        assert os.getpid() == opener
        return images.image(index)

    generate_outliers(replace(images, _open=opened), pipe, tmp_path, SETTINGS, SINGLY)
    bad = with_a_bad_image(images, OSError("torn"))
    with pytest.raises(OSError, match=r"^torn$"):
        generate_outliers(bad, pipe, tmp_path / "strict", SETTINGS, replace(SINGLY, strict=True))


class OddError(OSError):
    def __init__(self, *, what):
        super().__init__(f"odd: {what}")


class FailingMaker(OutlierMaker):
    error: Exception

    def denoise(self, work, steps=None):
        raise self.error


@pytest.mark.parametrize(
    "error", [FloatingPointError("no number"), OddError(what="fish")], ids=["plain", "cannot be pickled"]
)
def test_error_in_a_process_is_raised_as_it_is(pipe, images, tmp_path, two_threads, error):
    plan = plan_outliers(images, SETTINGS)
    maker = FailingMaker(pipe, plan)
    maker.error = error
    with pytest.raises((FloatingPointError, OSError)) as raised:
        list(make_batches(maker, OutlierWriter(tmp_path, "folder"), plan.batches(1)))
    assert str(raised.value) == str(error)


class KilledMaker(OutlierMaker):
    """Is killed in the second batch, as by a system that is out of memory."""

    def denoise(self, work, steps=None):
        if work.items[0].index == self.plan.batches(1)[1].indices[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().denoise(work, steps)


def test_fault_in_a_process_keeps_its_traceback(pipe, images, tmp_path, two_threads):
    plan = plan_outliers(images, SETTINGS)
    maker = FailingMaker(pipe, plan)
    maker.error = KeyError("no such thing")
    with pytest.raises(KeyError, match="in denoise"):
        list(make_batches(maker, OutlierWriter(tmp_path, "folder"), plan.batches(1)))


def test_process_that_the_system_kills_is_explained(pipe, images, tmp_path, two_threads):
    plan = plan_outliers(images, SETTINGS)
    with pytest.raises(MemoryError, match="one of the 2 processes that make outliers was killed"):
        list(make_batches(KilledMaker(pipe, plan), OutlierWriter(tmp_path, "folder"), plan.batches(1)))
