"""Without the warnings of diffusers, where they are no news."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging


@contextmanager
def without_warnings() -> Iterator[None]:
    """Within it diffusers logs errors only."""
    earlier = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(earlier)
