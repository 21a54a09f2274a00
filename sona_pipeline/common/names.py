"""Names of files and folders that are made of other names, and places that start at a home folder."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.request import url2pathname

LONGEST = 200
"""Bytes in UTF-8 of a name, which leave room for a suffix: file systems take 255."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)


def expanded(path: str | Path) -> Path:
    """`path` with a leading `~` or `~name` replaced by that home folder; as it is where there is no such home.

    An address `file:///...` becomes the path that it stands for.
    """
    if found := re.match(r"file:/+", os.fspath(path)):
        return Path(url2pathname(f"/{os.fspath(path)[found.end() :]}"))
    return Path(os.path.expanduser(path))


def at_home(text: str) -> str:
    """A place, or NAME=PLACE, with the place as `expanded` has it; any other text as it is."""
    found = re.match(r"([^=/]*=)?(~[\w.-]*)(?=/|$)", text)
    return (found[1] or "") + os.path.expanduser(found[2]) + text[found.end() :] if found else text


def safe_name(text: str, risky: str = r'[\x00-\x1f/\\:*?"<>|]') -> str:
    """The text as the name of a file or folder on any file system, the same for the same text.

    What is risky, dots at both ends, names that Windows keeps for devices, and letters that cannot be seen or stored
    get %-escapes. A name of more than `LONGEST` bytes is cut, and ends in a hash of all of it.

    Args:
        text: any.
        risky: pattern of what is escaped, by its first letter.
    """
    name = re.sub(rf"{risky}|^\.|[. ]$|[\x7f-\x9f\ud800-\udfff]|(?! )\s", _escaped, text)
    if _RESERVED.match(name):
        name = f"%{ord(name[0]):02x}{name[1:]}"
    if not name:
        return "%"
    return name if len(name.encode()) <= LONGEST else _cut(name, text)


def _escaped(found: re.Match[str]) -> str:
    letter, rest = found[0][0], found[0][1:]
    return "".join(f"%{byte:02x}" for byte in letter.encode("utf-8", "surrogatepass")) + rest


def _cut(name: str, text: str) -> str:
    """The name with a hash of the text at its end, in at most `LONGEST` bytes."""
    mark = f"%{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    return name.encode()[: LONGEST - len(mark)].decode(errors="ignore") + mark


def unique_names(texts: Iterable[str], named: Callable[[str], str] = safe_name) -> dict[str, str]:
    """For each text a name of its own: `named(text)`, and a hash of the text after it where another's is taken for it.

    Names are taken for one another if they differ in case only, as disks of Windows and Macs do, or in how accents
    are written (NFC or NFD).
    """
    names = {text: named(text) for text in texts}
    count = Counter(map(_seen, names.values()))
    return {text: name if count[_seen(name)] == 1 else _cut(name, text) for text, name in names.items()}


def _seen(name: str) -> str:
    """What some file systems compare names by."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
