"""The file of a part: one row per image, with its objects or its error, as parquet.

In:  predictions.
Out: the bytes of the file; and back, its rows and, from its footer alone, its `PartInfo`.

Every value is exact: the rows give the same COCO results as the predictions did.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypedDict

from ..annotations.coco_types import RLE, CocoResult
from .file_states import FileState
from .file_stores import OutputFolder, cluster_package, is_damaged

FOLDER = "parts"
"""Folder of the part files, which is a parquet data set."""
_INFO = b"maskrcnn.part"
_ROWS = 64  # images of a row group; their results are in memory before they are compressed


class StoredObject(TypedDict):
    """One object of an image."""

    category_id: int
    category_name: str
    score: float
    bbox: list[float]
    """x, y, width, height in pixels."""
    rle: str | None
    """Compressed counts of COCO's RLE; None without a mask."""
    keypoints: list[float] | None
    """x, y, score of each keypoint, in COCO's pixel convention."""


class StoredImage(TypedDict):
    """One image of a part."""

    key: str
    """Its stable id."""
    image_id: int
    file_name: str
    location: str | None
    """The file, URL or table it was read from."""
    row_group: int | None
    """For bytes in a table: the row group."""
    row: int | None
    """For bytes in a table: the row in that group."""
    file_size: int | None
    """Bytes of the file at `location` when it was read; None: unknown."""
    modified: datetime | None
    """When that file was last changed; None: unknown."""
    height: int | None
    width: int | None
    several_frames: bool | None
    """Whether the file has several frames, of which the first was used."""
    error: str | None
    """Why the image could not be predicted; None if it was."""
    objects: list[StoredObject]


@dataclass
class PartInfo:
    """What the footer of a part file says."""

    index: int
    digest: str
    """Of the images in it."""
    settings: str
    """Of what makes the results (`JobSettings.digest`)."""
    precision: str = "float32"
    """The precision that it was computed in."""
    computer: str = ""
    """Name of the machine, and number of the process."""
    images: int = 0
    """Images in it that were predicted."""
    errors: int = 0
    """Images in it that could not be."""
    several_frames: int = 0
    objects: dict[str, int] = field(default_factory=dict)
    """Number of objects of each category."""
    images_with: dict[str, int] = field(default_factory=dict)
    """Number of images in which the category was detected."""


class PartWriter:
    """Collects the rows of a part, compressed, in memory.

    Args:
        info: its counts are filled in.
    """

    def __init__(self, info: PartInfo) -> None:
        parquet = cluster_package("pyarrow.parquet")
        self.info = info
        self._schema = schema()
        self._buffer = io.BytesIO()
        self._writer = parquet.ParquetWriter(self._buffer, self._schema, compression="zstd")
        self._rows: list[StoredImage] = []
        self._objects: Counter[str] = Counter()
        self._images_with: Counter[str] = Counter()

    def add(self, row: StoredImage) -> None:
        """Adds the next image."""
        self._rows.append(row)
        names = [one["category_name"] for one in row["objects"]]
        self._objects.update(names)
        self._images_with.update(set(names))
        self.info.errors += row["error"] is not None
        self.info.images += row["error"] is None
        self.info.several_frames += bool(row["several_frames"])
        if len(self._rows) == _ROWS:
            self._compress()

    def content(self) -> bytes:
        """Ends the file and returns it."""
        self._compress()
        self.info.objects = dict(self._objects)
        self.info.images_with = dict(self._images_with)
        self._writer.add_key_value_metadata({_INFO: json.dumps(asdict(self.info)).encode()})
        self._writer.close()
        return self._buffer.getvalue()

    def _compress(self) -> None:
        if self._rows:
            pyarrow = cluster_package("pyarrow")
            self._writer.write_batch(pyarrow.RecordBatch.from_pylist(self._rows, self._schema))
            self._rows = []


def schema() -> Any:
    """The columns of a part file."""
    pyarrow = cluster_package("pyarrow")
    one = pyarrow.struct(
        [
            ("category_id", pyarrow.int64()),
            ("category_name", pyarrow.string()),
            ("score", pyarrow.float32()),
            ("bbox", pyarrow.list_(pyarrow.float64())),
            ("rle", pyarrow.string()),
            ("keypoints", pyarrow.list_(pyarrow.float64())),
        ]
    )

    return pyarrow.schema(
        [
            ("key", pyarrow.string()),
            ("image_id", pyarrow.int64()),
            ("file_name", pyarrow.string()),
            ("location", pyarrow.string()),
            ("row_group", pyarrow.int32()),
            ("row", pyarrow.int64()),
            ("file_size", pyarrow.int64()),
            ("modified", pyarrow.timestamp("us", "UTC")),
            ("height", pyarrow.int32()),
            ("width", pyarrow.int32()),
            ("several_frames", pyarrow.bool_()),
            ("error", pyarrow.string()),
            ("objects", pyarrow.list_(one)),
        ]
    )


def stored_object(result: CocoResult) -> StoredObject:
    """A COCO result as it is stored."""
    mask: Any = result.get("segmentation")
    return {
        "category_id": result["category_id"],
        "category_name": result.get("category_name", ""),
        "score": result["score"],
        "bbox": result.get("bbox", []),
        "rle": mask["counts"] if mask else None,
        "keypoints": result.get("keypoints"),
    }


def coco_results(row: StoredImage) -> list[CocoResult]:
    """The COCO results of an image, as `Instances.to_coco` returned them."""
    results: list[CocoResult] = []
    for one in row["objects"]:
        result: CocoResult = {
            "image_id": row["image_id"],
            "file_name": row["file_name"],
            "category_id": one["category_id"],
            "category_name": one["category_name"],
            "bbox": one["bbox"],
            "score": one["score"],
        }

        if one["rle"] is not None:
            result["segmentation"] = rle_of_stored(row, one["rle"])
        if one["keypoints"] is not None:
            result["keypoints"] = one["keypoints"]
        results.append(result)
    return results


def rle_of_stored(row: StoredImage, counts: str) -> RLE:
    """A mask of an image as COCO's RLE."""
    assert row["height"] is not None
    assert row["width"] is not None
    return {"size": [row["height"], row["width"]], "counts": counts}


def read_info(folder: OutputFolder, name: str) -> PartInfo | None:
    """What the footer of a part file says; None if it is missing, damaged, or no such file."""
    parquet = cluster_package("pyarrow.parquet")
    try:
        with folder.open(name) as file:
            metadata = parquet.read_metadata(file).metadata or {}
        return PartInfo(**json.loads(metadata[_INFO]))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None
    except OSError as error:
        if not is_damaged(error):
            raise
        return None


def read_part(folder: OutputFolder, name: str) -> Iterator[StoredImage]:
    """The rows of a part file, in order, a few in memory at a time."""
    parquet = cluster_package("pyarrow.parquet")
    with folder.open(name) as file:
        for batch in parquet.ParquetFile(file).iter_batches(_ROWS):
            yield from batch.to_pylist()


def read_keys(folder: OutputFolder, name: str) -> list[str]:
    """The stable ids of the images in a part file."""
    return [row["key"] for row in _read_columns(folder, name, ["key"])]


def read_states(
    folder: OutputFolder, name: str
) -> Iterator[tuple[dict[str, Any], FileState | None]]:
    """Key, location and error of each image in a part file, and the state of its file."""
    columns = ["key", "location", "error", "file_size", "modified"]
    for row in _read_columns(folder, name, columns):
        yield row, stored_state(row)


def stored_state(row: Mapping[str, Any]) -> FileState | None:
    """The state of the file of a stored image when it was read; None: unknown."""
    size = row.get("file_size")  # parts of earlier versions do not have it
    return None if size is None else FileState(size, row["modified"])


def _read_columns(folder: OutputFolder, name: str, columns: list[str]) -> list[dict[str, Any]]:
    parquet = cluster_package("pyarrow.parquet")
    with folder.open(name) as file:
        return parquet.ParquetFile(file).read(columns).to_pylist()
