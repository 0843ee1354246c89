"""What every annotation format provides: how it is recognized, read and written, and its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .annotation_source import AnnotationSource
from .format_name import FormatName
from .reading import Annotated
from .writing import ConversionTarget, Unrepresentable

ImagesFolder = str | Path | None
"""The folder of the images that the user gave; None = where the format says they are."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One annotation format. Each module of a format ends in an instance of this class."""

    name: str
    """Short name for messages and tests."""
    description: str
    """What files of this format look like, for the error that lists all known formats."""
    written_as: tuple[FormatName, ...] = ()
    """The names that `convert_annotations` knows it by; `yolo` has two, for masks and for poses."""

    recognize: Callable[[AnnotationSource, ImagesFolder], bool]
    """Returns whether a file or folder has this format; raises DataError if it cannot be parsed."""
    splits: Callable[[AnnotationSource], list[str]]
    """Returns the names of the splits; empty if the source is not divided."""
    read: Callable[[AnnotationSource, ImagesFolder, str], Annotated]
    """Reads one split; "" for a source that is not divided."""
    write: Callable[[Annotated, ConversionTarget, Unrepresentable], None] | None = None
    """Writes one split, and records in the last argument whatever the format cannot represent.

    None = the format is only read.
    """

    lists_images: bool = False
    """One file lists the images, so that others in their folder are counted and named."""
    suffix: str = ""
    """Suffix of the file, for a format that writes one file per split; "" = it writes a folder."""
    needs_images_beside: bool = False
    """The images must be in the folder of the annotations, so they are copied or linked."""
    one_folder_for_all_splits: bool = False
    """All splits share one folder, and one list of categories."""
    holds_scores: bool = True
    """Confidence scores of predictions survive."""
    sides_from_names: bool = False
    """Left and right keypoints are recognized by their names alone; `flip` does not survive."""
    has_attributes: bool = False
    """Objects have named attributes, one of which is the category; the user can choose it."""
    holds_everything: bool = False
    """Everything in a COCO dictionary survives."""
