"""Models of other libraries: why one cannot be loaded, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sona_pipeline.common.messages import brief


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Say why a model of transformers cannot be loaded, whatever it says itself.

    Args:
        name: folder or Hub id.
        what: it has to be, such as "image classifier".

    Raises:
        FileNotFoundError: it is neither here nor on the Hub.
        ValueError: it is damaged, has no weights in safetensors, or is something else.
        OSError: the disk fails.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged: copy or download them again ({brief(error)})") from error
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError, ImportError) as error:
        if getattr(error, "errno", None):
            raise
        if Path(name).is_dir():
            raise ValueError(
                f"the folder {name} is no {what} of transformers with all its files, and weights in safetensors: name"
                f" one that is ({brief(error)})"
            ) from error
        raise FileNotFoundError(
            f"{name} is no folder here, and no {what} that can be had from the Hub: name another, or connect once to"
            f" download it ({brief(error)})"
        ) from error
