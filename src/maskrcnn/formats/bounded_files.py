"""Reads XML, YAML, CSV and text files that somebody else made, within stated bounds.

A file cannot exhaust memory or run code: its size is bounded, XML may declare no entities, YAML may
repeat no collections, and endless nesting is an error. Every failure is a `DataError` that names
the file. JSON is read by `annotations/json_file.py`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from ..annotations.coco_types import Json, JsonObject
from ..annotations.json_file import MIB, read_bounded
from ..annotations.problems import DataError

MOST_XML = 1024 * MIB
MOST_TEXT = 256 * MIB
MOST_YAML = MIB  # Python's YAML parser reads about 0.1 MiB per second
MOST_NESTED = 200  # elements of XML inside each other


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file, which may have no DOCTYPE and thus no entities of its own.

    Raises:
        DataError: the file is missing, is not valid XML, or exceeds a bound.
    """
    data = read_bounded(path, MOST_XML, "XML")
    builder = ElementTree.TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MOST_NESTED:
            raise DataError(
                f"{path.name}: more than {MOST_NESTED} elements inside each other; "
                "export it again from the tool"
            )
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: Any) -> None:
        raise DataError(
            f"{path.name}: has a DOCTYPE, whose entities can refer to other files "
            "or fill the memory; remove the lines from <!DOCTYPE to its >"
        )

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except expat.ExpatError as error:
        if error.code == expat.errors.codes[expat.errors.XML_ERROR_UNKNOWN_ENCODING]:
            raise DataError(
                f"{path.name}: unsupported encoding: {error}; save it as UTF-8"
            ) from None
        raise DataError(
            f"{path.name}: not valid XML: {error}; export it again from the tool"
        ) from None
    except DataError:
        raise
    except (ValueError, LookupError) as error:
        # encodings that Python's parser does not support, such as gb2312
        raise DataError(f"{path.name}: unsupported encoding: {error}; save it as UTF-8") from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, in which an alias may repeat a value, but not a collection.

    Raises:
        DataError: the file is missing, is not valid YAML, or exceeds a bound.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Without aliases of collections, which grow to any size where they are printed."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            alias = self.peek_event()
            node = super().compose_node(parent, index)
            if isinstance(alias, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
                raise DataError(
                    f"{path.name}: the alias *{alias.anchor} repeats a list or mapping, "
                    f"which is not supported; write the values out"
                )
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            keys = [str(key) for key in keys if key != "<<"]
            twice = next((key for key, count in Counter(keys).items() if count > 1), None)
            if twice is not None:
                line = node.start_mark.line + 1
                raise DataError(
                    f"{path.name}: the key {twice} occurs twice in the mapping that starts in line "
                    f"{line}; remove one"
                )
            return super().construct_mapping(node, deep)

    text = _text(path, MOST_YAML, "YAML")
    try:
        return yaml.load(text, Loader)
    except DataError:
        raise
    except RecursionError:
        raise DataError(f"{path.name}: lists are nested too deeply; correct the file") from None
    except (yaml.YAMLError, ValueError) as error:  # such as a date with a 13th month
        raise DataError(f"{path.name}: not valid YAML: {error}; correct the file") from None


def read_text(path: Path) -> str:
    """The content of a text file, without a byte order mark.

    Raises:
        DataError: the file is missing, is not UTF-8, or exceeds the bound.
    """
    return _text(path, MOST_TEXT, "text")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a head; missing fields are empty, a leading # is skipped.

    Raises:
        DataError: the file is missing, is not valid CSV, or exceeds a bound.
    """
    text = read_text(path).removeprefix("#")  # VIA 1 starts with "#filename"
    try:
        rows = list(csv.DictReader(io.StringIO(text), restkey="more", restval=""))
    except csv.Error as error:
        raise DataError(
            f"{path.name}: not valid CSV: {error}; export it again from the tool"
        ) from None
    return rows


def read_head(path: Path, size: int = 2000) -> bytes:
    """The first bytes of a file, in which the root element of XML starts; empty if unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _text(path: Path, most: int, kind: str) -> str:
    try:
        text = read_bounded(path, most, kind).decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: not UTF-8: {error}; save it as UTF-8") from None


def part_of(content: Json, name: str) -> JsonObject:
    """The object under a key; empty if there is none, or `content` is no object itself."""
    part = content.get(name) if isinstance(content, Mapping) else None
    return part if isinstance(part, Mapping) else {}
