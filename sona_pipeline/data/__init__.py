"""Images, what they are called, and outlier sets as files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["sample"])
