"""What systems strew about among files: notes of Macs, Windows, network disks and tools, which are nobody's images."""

from __future__ import annotations

_STREWN = {
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@sharebin",
    "@snapshot",
    "@tmp",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "found.000",
    "icon\r",
    "lost+found",
    "network trash folder",
    "system volume information",
    "temporary items",
    "thumbs.db",
    "thumbs.db:encryptable",
}


def is_strewn(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden, or left by a system such as `Thumbs.db`, `@eaDir`.

    Args:
        name: of the file or folder alone, without the folders above it.
    """
    return name.startswith(".") or name.casefold() in _STREWN
