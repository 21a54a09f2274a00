"""Where other libraries keep what they download and compute, if the home folder may not be written to."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)


def use_writable_caches() -> None:
    """Give Hugging Face's libraries, Triton and matplotlib a folder for this process where theirs take no file.

    What is in a cache that may be read is still found. To be called before these libraries are imported.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface").expanduser()
    places = {"HF_DATASETS_CACHE": home / "datasets", "HF_MODULES_CACHE": home / "modules"}
    if not (home / "hub").exists():
        places["HF_HUB_CACHE"] = home / "hub"
    places["TRITON_CACHE_DIR"] = Path(os.environ.get("TRITON_HOME") or "~").expanduser() / ".triton" / "cache"
    settings = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    places["MPLCONFIGDIR"] = Path(settings).expanduser() / "matplotlib"
    lacking = [name for name, place in places.items() if name not in os.environ and not _can_be_written(place)]
    if not lacking:
        return
    folder = Path(tempfile.mkdtemp(prefix="sona-caches-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {name: str(folder / name.lower()) for name in lacking}
    logger.warning(
        "%s cannot be written to, and so nothing is cached for the next run: set HF_HOME to another folder", home
    )


def _can_be_written(place: Path) -> bool:
    """Whether a folder, or the first of those above it that is there, takes a new file."""
    there = next((folder for folder in (place, *place.parents) if os.path.lexists(folder)), place)
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False
