"""Shards: the share of one process in a job, and the record that it leaves.

In:  "3/8". Out: a `Shard`; OUT/shard-3-of-8.json, written when all of its parts are there.

Part n belongs to shard n % count + 1, so that shards are equally large whatever the source is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from ..annotations.coco_types import Json
from ..annotations.problems import DataError
from .file_stores import OutputFolder
from .image_rows import Listing

_NAME = re.compile(r"(?:.*/)?shard-(\d+)-of-(\d+)\.json$")


@dataclass(frozen=True)
class Shard:
    """One of several processes that share a job."""

    number: int = 1
    """From 1."""
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads "3/8".

        Raises:
            ValueError: it is not of this form, or the number is not from 1 to the count.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if match is None:
            raise ValueError(f"shard: expected i/n such as 3/8, got {text!r}")
        number, count = int(match[1]), int(match[2])
        if number == 0 and count > 0:
            raise ValueError(
                f"shard: expected 1/{count} to {count}/{count}, got {text}; "
                "add 1 to an index that starts at 0"
            )
        if not 1 <= number <= count:
            raise ValueError(f"shard: expected 1/{count} to {count}/{count}, got {text}")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """The name of its record."""
        return f"shard-{self.number}-of-{self.count}.json"

    def has(self, index: int) -> bool:
        """Whether a part belongs to it."""
        return index % self.count == self.number - 1

    def of(self, index: int) -> Shard:
        """The shard, of as many, to which a part belongs."""
        return Shard(index % self.count + 1, self.count)


@dataclass(frozen=True)
class ShardRecord:
    """That a shard has made all of its parts, and what the whole source held then."""

    shard: Shard
    settings: str
    listing: Listing

    def write(self, folder: OutputFolder) -> None:
        """Writes the record."""
        content = {"settings": self.settings, "listing": asdict(self.listing)}
        content["listing"]["digest"] = f"{self.listing.digest:032x}"  # JSON has no large numbers
        folder.write(self.shard.name, json.dumps(content, indent=1).encode())


def read_records(folder: OutputFolder) -> list[ShardRecord]:
    """The records of all shards below a folder.

    Raises:
        DataError: a record is damaged.
    """
    records = []
    for name in folder.names(".json", deep=True):
        if match := _NAME.match(name):
            data = folder.read(name) or b""
            shard = Shard(int(match[1]), int(match[2]))
            records.append(_read_record(data, shard, f"{folder}/{name}"))
    return sorted(records, key=lambda record: (record.shard.count, record.shard.number))


def _read_record(data: bytes, shard: Shard, where: str) -> ShardRecord:
    try:
        content: Json = json.loads(data)
        if not isinstance(content, Mapping):
            raise TypeError("no object")

        values: dict[str, Json] = {
            part.name: content["listing"][part.name] for part in fields(Listing)
        }
        values["digest"] = int(values["digest"], 16)
        listing = Listing(**values)
        return ShardRecord(shard, content["settings"], listing)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{where}: expected the record of a shard, got {error}; delete it and run "
            f"--shard {shard} again"
        ) from None
