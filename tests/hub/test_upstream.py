"""The files for diffusers' community examples, and the bare name that loads from them."""

import ast
import inspect
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import __version__
from loopback_hub import LoopbackHub
from warm_python import fresh_python

from sona_pipeline import TINY_MODEL, SONAPipeline, load_pipeline
from sona_pipeline.cli.app import main
from sona_pipeline.hub.upstream import check_upstream, write_upstream

CALL = """
def latents(pipe):
    pipe.set_progress_bar_config(disable=True)
    images = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32)
    options = {"stop_step": 2, "num_inference_steps": 4, "output_type": "latent"}
    return pipe(images, "a photo of a shirt", "a photo of a bag", generator=torch.manual_seed(0), **options).images
"""
LOAD = """
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils

dynamic_modules_utils.get_diffusers_versions = lambda: [VERSION]  # which is else asked of PyPI
torch.save(latents(DiffusionPipeline.from_pretrained("user/tiny", custom_pipeline="sona")), "latents.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the command wrote, which has also loaded it."""
    folder = tmp_path_factory.mktemp("upstream") / "files"
    main(["upstream", "--output", str(folder)])
    return folder


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_row_has_the_columns_of_the_table_and_leads_to_the_section(folder):
    row, section = ((folder / f"README-{part}.md").read_text() for part in ("row", "section"))
    assert row.count("\n") == 1
    example, description, code, colab, author = (cell.strip() for cell in row.strip().strip("|").split("|"))
    assert colab == "-" and author and "AAAI 2025" in description
    heading = re.match(r"### (.*)\n", section)[1]
    assert heading == example and code == f"[{heading}](#{slug(heading)})"


def test_example_of_the_section_is_python_and_uses_arguments_that_there_are(folder):
    code = re.search(r"```python\n(.*?)```", (folder / "README-section.md").read_text(), re.DOTALL)[1]
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    used = next(call for call in calls if getattr(call.func, "id", "") == "pipe")
    assert {keyword.arg for keyword in used.keywords} <= set(inspect.signature(SONAPipeline.__call__).parameters)
    loads = next(call for call in calls if getattr(call.func, "attr", "") == "from_pretrained")
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in loads.keywords}
    assert options == {"custom_pipeline": "'sona'", "dtype": "torch.float16"}


def test_bare_name_loads_from_the_mirror_that_diffusers_asks(folder, tmp_path):
    (tmp_path / "mirror" / f"v{__version__}").mkdir(parents=True)
    shutil.copyfile(folder / "sona.py", tmp_path / "mirror" / f"v{__version__}" / "sona.py")
    with LoopbackHub() as hub:
        hub.add("diffusers/community-pipelines-mirror", tmp_path / "mirror", repo_type="dataset")
        hub.add("user/tiny", TINY_MODEL)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | hub.environment(tmp_path / "home")
        command = [fresh_python(), "-c", CALL + LOAD.replace("VERSION", repr(__version__))]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    scope = {"torch": torch}
    exec(CALL, scope)
    expected = scope["latents"](load_pipeline("tiny", "cpu", dtype="float32"))
    torch.testing.assert_close(torch.load(tmp_path / "latents.pt"), expected, atol=1e-3, rtol=0)


def test_code_that_needs_this_package_does_not_pass(folder, tmp_path):
    code = (folder / "sona.py").read_text()
    (tmp_path / "sona.py").write_text(code.replace("import numpy as np", "import numpy as np\nimport sona_pipeline"))
    with pytest.raises(ValueError, match="sona_pipeline"):
        check_upstream(tmp_path / "sona.py")


def test_a_folder_that_holds_something_is_left_alone(folder):
    with pytest.raises(FileExistsError, match="holds other things"):
        write_upstream(folder)
