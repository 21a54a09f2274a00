"""Columns of tables: of which types images and labels may be, and one image from what a row holds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, Features

IMAGE_TYPES = (
    "encoded images (`datasets.Image`, binary), paths of image files (string), or pixels as lists of rows (height x"
    " width, or height x width x 3 whole numbers)"
)
LABEL_TYPES = "names (string) or whole numbers (`datasets.ClassLabel`, integer, boolean, float)"


def features_of(shard: Path) -> Features:
    """The columns of a parquet file as `datasets` will read them; only its schema is read.

    Raises:
        ValueError: it is no parquet file, or `datasets` does not know the type of a column.
    """
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(shard)
    except pa.ArrowException as error:
        raise ValueError(f"{shard} is no parquet file, or a damaged one: {error}") from error
    for field in schema:
        try:
            datasets.Features.from_arrow_schema(pa.schema([field]))
        except (ValueError, TypeError, NotImplementedError):
            raise ValueError(
                f"{shard} has a column {field.name!r} of the type {field.type}, which `datasets` does not read: leave"
                " it out"
            ) from None
    return datasets.Features.from_arrow_schema(schema)


def check_image_column(features: Features, column: str, name: str) -> None:
    """Raise ValueError if the column of a table is of no type that images are read from."""
    import datasets
    import pyarrow.types as types

    feature = features[column]
    if isinstance(feature, datasets.Image):
        return
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        kind: Any = feature.dtype
        is_taken = kind.startswith(("int", "uint")) or (kind.startswith("float") and len(feature.shape) == 2)
    else:
        kind = features.arrow_schema.field(column).type
        is_taken = _is_bytes(kind) or _is_text(kind) or _is_pixels(kind)
        if types.is_struct(kind):
            inner = {field.name: field.type for field in kind}
            is_taken = ("bytes" in inner or "path" in inner) and _is_stored(inner)
    if not is_taken:
        shown = features.arrow_schema.field(column).type
        raise ValueError(f"column {column!r} of {name} is of the type {shown}, but images have to be {IMAGE_TYPES}")


def check_label_column(features: Features, column: str, name: str) -> None:
    """Raise ValueError if the column of a table is of no type that labels are read from."""
    import pyarrow.types as types

    kind = features.arrow_schema.field(column).type
    numbers = types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind)
    if not (numbers or _is_text(kind) or types.is_null(kind)):
        raise ValueError(f"column {column!r} of {name} is of the type {kind}, but labels have to be {LABEL_TYPES}")


def check_rows(table: Dataset, column: str, name: str) -> None:
    """Raise ValueError if a column has text that is no path, or pixels in another shape, as far as some rows show."""
    rows = sorted({len(table) * part // 8 for part in range(8)})
    values = [value for value in table.select(rows)[column] if value is not None]
    paths = [value for value in values if isinstance(value, str)]
    if paths and not any("://" in path or _is_file(path) for path in paths):
        shown = paths[0] if len(paths[0]) <= 80 else f"{paths[0][:80]}..."
        raise ValueError(
            f"column {column!r} of {name} holds text such as {shown!r}, where no image file lies: give paths of files,"
            f" which start from {Path.cwd()}, or the images themselves"
        )
    if values and isinstance(values[0], list):
        try:
            _from_pixels(values[0])
        except ValueError as error:
            raise ValueError(f"column {column!r} of {name}: {error}") from None


def picture(value: Any, feature: Any) -> Image.Image | None:
    """The image that a row holds, not decoded yet where it is in a file; None if there is none.

    Args:
        value: bytes of an image file, a path, a dictionary of both, or pixels as lists.
        feature: of the column; of `datasets.Image` the mode is honoured.

    Raises:
        OSError, ValueError: it cannot be opened.
    """
    if isinstance(value, list):
        return _from_pixels(value)
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(content, str):
        content, path = None, content
    if content is not None:
        opened = Image.open(io.BytesIO(content))
    elif not path:
        return None
    elif "://" in path:
        import datasets

        return datasets.Image(mode=getattr(feature, "mode", None)).decode_example({"path": path, "bytes": None})
    else:
        opened = Image.open(path)
    mode = getattr(feature, "mode", None)
    return opened.convert(mode) if mode else opened


def _from_pixels(rows: list) -> Image.Image:
    """Pixels as lists `[H][W]` or `[H][W][C]`."""
    try:
        pixels = np.asarray(rows)
    except ValueError:
        raise ValueError("the rows of its pixels are not of one length") from None
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or not pixels.size:
        shape = " x ".join(map(str, pixels.shape))
        raise ValueError(f"its pixels have the shape {shape}, but it has to be height x width, or height x width x 3")
    if pixels.dtype.kind == "f" and pixels.ndim == 2:
        return Image.fromarray(pixels.astype(np.float32))
    highest = 65535 if pixels.ndim == 2 else 255
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > highest:
        raise ValueError(f"its pixels have to be whole numbers in 0..{highest}")
    return Image.fromarray(pixels.astype(np.uint8 if pixels.max() <= 255 else np.int32))


def _is_bytes(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_stored(fields: dict[str, pyarrow.DataType]) -> bool:
    """Whether the fields of a structure hold an image file as `datasets` stores one: its bytes, its path, or both."""
    import pyarrow.types as types

    content, path = fields.get("bytes"), fields.get("path")
    return (content is None or types.is_null(content) or _is_bytes(content)) and (
        path is None or types.is_null(path) or _is_text(path)
    )


def _is_pixels(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    depth = 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth in (2, 3) and (types.is_integer(kind) or (depth == 2 and types.is_floating(kind)))


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # far too long for a path, or with what no path has in it
        return False
