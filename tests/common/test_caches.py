import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
from sona_pipeline.common.caches import use_writable_caches
use_writable_caches()
import datasets, huggingface_hub.constants as hub, json, matplotlib
datasets.Dataset.from_dict({"a": [1]}).map(lambda row: row)
print(json.dumps([str(datasets.config.HF_DATASETS_CACHE), hub.HF_HUB_CACHE, matplotlib.get_configdir()]))
"""


def places(home: Path, **more: str) -> tuple[list[str], str]:
    """Where things are cached if that is the home folder, and what is logged."""
    names = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "MPLCONFIGDIR")
    known = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=known | {"HOME": str(home)} | more, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_caches_at_home_stay_where_they_are(tmp_path):
    found, said = places(tmp_path)
    assert all(place.startswith(str(tmp_path)) for place in found)
    assert "cannot be written" not in said


def test_a_home_that_cannot_be_is_made_up_for(tmp_path):
    (tmp_path / "file").write_text("")
    found, said = places(tmp_path / "file" / "home", TMPDIR=str(tmp_path))
    assert all(place.startswith(f"{tmp_path}/sona-caches-") for place in found)
    assert f"{tmp_path}/file/home/.cache/huggingface cannot be written to" in said
    assert not list(tmp_path.glob("sona-caches-*"))


def test_places_that_are_named_are_kept(tmp_path):
    (tmp_path / "file").write_text("")
    found, _ = places(tmp_path / "file" / "home", HF_DATASETS_CACHE=f"{tmp_path}/mine", TMPDIR=str(tmp_path))
    assert found[0] == f"{tmp_path}/mine"
