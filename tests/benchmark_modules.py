"""The modules of a benchmark, as its command sees them."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from sona_pipeline import METHODS


@contextmanager
def modules_of(folder: Path) -> Iterator[SimpleNamespace]:
    """The modules of a benchmark by name; gone again afterwards, with the methods that they add."""
    with pytest.MonkeyPatch.context() as added:
        added.setattr(METHODS, "_places", dict(METHODS._places))
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            modules = {path.stem: importlib.import_module(path.stem) for path in folder.glob("*.py")}
        yield SimpleNamespace(**modules)
    for name in modules:
        del sys.modules[name]
