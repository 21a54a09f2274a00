"""What the files of an outlier set are called."""

from pathlib import Path

OUTLIERS, RECONSTRUCTIONS = "outliers", "reconstructions"
SETTINGS, METADATA, REJECTS, IMAGE_LIST = "settings.json", "metadata.jsonl", "rejects.jsonl", "outliers.txt"
MANIFEST = "manifest.json"
"""What there is of a part, or of a set at an address: its batches, or its shards with their sizes and hashes."""
PARTS = ".parts"
"""The folder of what is committed and not merged yet."""


def hash_of(file_name: str) -> int:
    """The hash of an image's key, which the file of its outlier is named by."""
    return int(Path(file_name).stem, 16)
