"""Images of a source as rows, and the parts that they are cut into.

In:  rows, in the order of the source.
Out: parts, each the work for one file, and a `Listing`, which tells whether two listings agree.

A part is a run of consecutive rows whose length follows from its number alone. Nothing here holds
more than one part, whatever the number of images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from .file_states import FileState

_FIRST_SIZE = 32  # images; two processes share a folder of a hundred
_LARGEST_SIZE = 4096  # a billion images make 250,000 files
_PARTS_OF_A_SIZE = 64
_MODULUS = 2**128


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a source."""

    key: str
    """Its stable id: the path relative to the source, or the id that the source gives."""
    file_name: str
    """The name that its results carry."""
    location: str | None
    """A file, a URL, or the table that holds its bytes. None: the source names no image here."""
    image_id: int | None = None
    """The id that the source gives; None: its number in the source, from 1."""
    group: int | None = None
    """For bytes in a table: the row group."""
    offset: int = 0
    """For bytes in a table: the row in that group."""
    state: FileState | None = None
    """Of the object at `location`, where listing the source gave it."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a source, whose results share a file."""

    index: int
    first: int
    """How many rows precede it."""
    rows: tuple[ImageRow, ...]

    @property
    def name(self) -> str:
        """The name of its file."""
        return part_name(self.index)

    @property
    def digest(self) -> str:
        """A hash of the images in it and their order."""
        content = hashlib.blake2b(digest_size=16)
        for number, row in enumerate(self.rows, start=self.first + 1):
            text = f"{row.key}\0{number if row.image_id is None else row.image_id}\0"
            content.update(text.encode("utf-8", "surrogateescape"))
        return content.hexdigest()

    def image_id(self, offset: int) -> int:
        """The id of the image in a row of the part."""
        given = self.rows[offset].image_id
        return self.first + offset + 1 if given is None else given


@dataclass
class Listing:
    """What a whole source holds, in the same few bytes for any number of images."""

    images: int = 0
    parts: int = 0
    digest: int = 0
    """Sum of a hash for each part, so that the order in which parts are added does not matter."""
    notes: list[str] = field(default_factory=list)
    """What is in the source and not used, as sentences."""

    def add(self, index: int, images: int, digest: str) -> None:
        """Counts one part."""
        mixed = hashlib.blake2b(f"{index} {digest}".encode(), digest_size=16).digest()
        self.images += images
        self.parts += 1
        self.digest = (self.digest + int.from_bytes(mixed, "big")) % _MODULUS

    def is_of(self, other: Listing) -> bool:
        """Whether both list the same images."""
        return (self.images, self.parts, self.digest) == (other.images, other.parts, other.digest)


def part_name(index: int) -> str:
    """The name of the file of a part."""
    return f"part-{index:08d}.parquet"


def size_of_part(index: int, part_size: int | None) -> int:
    """How many rows a part has, unless the source ends.

    Args:
        index: of the part.
        part_size: the same for all parts; None: 32, twice as many after every 64 parts, up to
            4,096. Small sources then have parts for several workers, and large ones few files.
    """
    if part_size is not None:
        return part_size
    return min(_FIRST_SIZE << min(index // _PARTS_OF_A_SIZE, 16), _LARGEST_SIZE)


def cut_parts(rows: Iterable[ImageRow], part_size: int | None, listing: Listing) -> Iterator[Part]:
    """Cuts rows into parts, and counts them in `listing`."""
    rows = iter(rows)
    first = 0
    index = 0
    while taken := tuple(islice(rows, size_of_part(index, part_size))):
        part = Part(index, first, taken)
        listing.add(index, len(taken), part.digest)
        yield part
        first += len(taken)
        index += 1
