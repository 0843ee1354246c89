"""The images in the body of a request: `BodyReader`, in memory and within limits.

In:  a body piece by piece: multipart/form-data (fields "files"), an image, or JSON
     {"images": [{"name", "data": base64}]}.
Out: the encoded images with their names. Nothing is written to disk, and no URL is fetched.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from dataclasses import dataclass
from email.message import Message
from urllib.parse import unquote

from ..annotations.coco_types import Json
from ..annotations.json_file import parse_json
from ..annotations.problems import DataError
from ..annotations.shown_values import shown
from ..runtime.counted import counted
from .service_error import ServiceError, limit_of
from .service_settings import ServiceSettings

FIELD = "files"
"""Name of the form's field that holds images."""
KINDS = "multipart/form-data, image/*, application/octet-stream or application/json"
_LONGEST_NAME = 255
_LONGEST_TYPE = 1000  # characters of a Content-Type; the time to parse it grows with their square
_JSON_STRUCTURE = 64  # brackets and commas per image
_JSON_COPIES = 4  # bytes of memory per byte of JSON: itself, as text, in its parts, decoded
_WHITESPACE = b" \t\n\r\v\f"
_DATA_URL = re.compile(rb"data:[\w/+.;=-]*;base64,")


class NamedBytes(io.BytesIO):
    """A file in memory with a name, which errors about it begin with."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


@dataclass(frozen=True)
class ReceivedImage:
    """An encoded image."""

    name: str
    data: bytes

    def open(self) -> NamedBytes:
        """The image as a file."""
        return NamedBytes(self.data, self.name)


class BodyReader:
    """Takes a body piece by piece.

    Args:
        content_type: the request's header.
        settings: the limits.

    Raises:
        ServiceError: the content type is none of those that are read.
    """

    def __init__(self, content_type: str, settings: ServiceSettings) -> None:
        self._settings = settings
        self.num_bytes = 0
        """Bytes of the body so far."""
        self._data = io.BytesIO()  # which gives its content without a copy
        self._form: _Form | None = None

        if len(content_type) > _LONGEST_TYPE:
            raise ServiceError(
                415,
                "content_type",
                f"Content-Type: expected at most {_LONGEST_TYPE:,} characters, "
                f"got {len(content_type):,}",
            )
        kind, parameters = _parsed_header(content_type)
        self._kind = kind
        if kind == "multipart/form-data":
            self._form = _Form(parameters.get("boundary", ""), settings)
        elif kind != "application/json" and not (
            kind.startswith("image/") or kind == "application/octet-stream"
        ):
            raise ServiceError(
                415,
                "content_type",
                f"Content-Type: expected {KINDS}, got {content_type[:100] or 'none'}",
            )

    @property
    def copies(self) -> int:
        """How many bytes of memory a byte of the body takes at the most."""
        return _JSON_COPIES if self._kind == "application/json" else 1

    def add(self, chunk: bytes) -> None:
        """Takes the next piece.

        Raises:
            ServiceError: the body is too large or malformed.
        """
        self.num_bytes += len(chunk)
        check_bytes(self.num_bytes, self._settings)
        if self._form is not None:
            self._form.add(chunk)
        else:
            self._data.write(chunk)

    def images(self) -> list[ReceivedImage]:
        """The images of the whole body, which the reader then forgets.

        Raises:
            ServiceError: there are none or too many, or the body is malformed.
        """
        if self._form is not None:
            images = self._form.images()
        elif self._kind == "application/json":
            images = _from_json(self._taken(), self._settings)
        else:
            images = [ReceivedImage("image", self._taken())]
        if not images:
            raise _malformed(f'expected at least one image in the field "{FIELD}", got none')
        return images

    def _taken(self) -> bytes:
        data = self._data
        self._data = io.BytesIO()
        return data.getvalue()


def check_bytes(size: int, settings: ServiceSettings) -> None:
    """Checks the size of a body, announced or received.

    Raises:
        ServiceError: it exceeds the limit.
    """
    if size > settings.max_bytes:
        raise ServiceError(
            413,
            "too_large",
            f"the request has more than {settings.max_bytes:,} bytes (--max-bytes); "
            "send fewer or smaller images",
            limit=limit_of(settings, "max_bytes"),
        )


def check_count(count: int, settings: ServiceSettings) -> None:
    """Checks the number of images of a request.

    Raises:
        ServiceError: it exceeds the limit.
    """
    if count > settings.max_files:
        raise ServiceError(
            413,
            "too_many_files",
            f"the request has more than {counted(settings.max_files, 'image')} (--max-files); "
            "send several requests",
            limit=limit_of(settings, "max_files"),
        )


class _Form:
    """A form of fields "files", parsed as it arrives."""

    def __init__(self, boundary: str, settings: ServiceSettings) -> None:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        self._settings = settings
        self._images: list[ReceivedImage] = []
        self._headers: dict[str, str] = {}
        self._header = (bytearray(), bytearray())
        self._name = ""
        self._data = io.BytesIO()
        self._has_ended = False
        self._error = FormParserError
        if not boundary:
            raise _malformed("Content-Type: expected multipart/form-data with a boundary, got none")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda d, a, b: self._header[0].extend(d[a:b]),
                    "on_header_value": lambda d, a, b: self._header[1].extend(d[a:b]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_data,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _malformed(f"malformed form: {error}") from None

    def add(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except self._error as error:
            raise _malformed(f"malformed form: {error}") from None

    def images(self) -> list[ReceivedImage]:
        if not self._has_ended:
            raise _malformed("the form is truncated: its last boundary is missing")
        return self._images

    def _begin_part(self) -> None:
        check_count(len(self._images) + 1, self._settings)
        self._headers = {}
        self._data = io.BytesIO()

    def _end_header(self) -> None:
        name, value = (bytes(part).decode("utf-8", "replace") for part in self._header)
        self._headers[name.lower()] = value
        self._header = (bytearray(), bytearray())

    def _begin_data(self) -> None:
        _, parameters = _parsed_header(self._headers.get("content-disposition", ""))
        field = parameters.get("name", "")
        if field != FIELD:
            advice = f'name the images "{FIELD}"; options belong in the query, as ?min_score=0.3'
            raise _malformed(f'form field {shown(field, 40)}: expected "{FIELD}"; {advice}')
        self._name = _plain_name(parameters.get("filename", ""), len(self._images) + 1)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._data.write(memoryview(data)[start:end])

    def _end_part(self) -> None:
        self._images.append(ReceivedImage(self._name, self._data.getvalue()))
        self._data = io.BytesIO()

    def _end(self) -> None:
        self._has_ended = True


def _from_json(data: bytes, settings: ServiceSettings) -> list[ReceivedImage]:
    # millions of empty lists would take many times the memory of their text
    structure = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if structure > _JSON_STRUCTURE * (settings.max_files + 1):
        raise _malformed(
            'JSON: expected {"images": [{"name": ..., "data": base64}]} and nothing else'
        )
    try:
        content = parse_json(data, "JSON")
    except DataError as error:
        raise _malformed(str(error)) from None
    del data  # before its images are decoded

    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise _malformed(
            f'JSON: expected {{"images": [{{"data": base64}}]}}, got {shown(content, 60)}'
        )
    if unknown := content.keys() - {"images"}:
        raise _malformed(
            f"JSON: unexpected keys: {shown(', '.join(sorted(unknown)), 60)}; "
            "options belong in the query, as ?min_score=0.3"
        )
    check_count(len(entries), settings)
    return [_json_image(entry, number) for number, entry in enumerate(entries, start=1)]


def _json_image(entry: Json, number: int) -> ReceivedImage:
    where = f"images[{number - 1}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
        raise _malformed(f'{where}: expected {{"data": base64}}, got {shown(entry, 60)}')
    if unknown := entry.keys() - {"name", "data"}:
        raise _malformed(f"{where}: unexpected keys: {shown(', '.join(sorted(unknown)), 60)}")
    name = entry.get("name", "")
    if not isinstance(name, str):
        raise _malformed(f"{where}.name: expected text, got {shown(name, 40)}")

    text = entry.pop("data").encode("utf-8", "replace")
    if re.match(rb"[a-z]+://", text):
        raise _malformed(f"{where}.data: expected base64 text, got a URL; URLs are not fetched")
    if url := _DATA_URL.match(text[:200]):
        text = text[url.end() :]
    try:
        data = base64.b64decode(text.translate(None, _WHITESPACE), validate=True)
    except binascii.Error as error:
        reason = str(error).lower()
        raise _malformed(f"{where}.data: expected base64 text: {reason}") from None
    return ReceivedImage(_plain_name(name, number), data)


def _parsed_header(value: str) -> tuple[str, dict[str, str]]:
    """The value of a header and its parameters, names in lower case."""
    message = Message()
    message["content-type"] = value.replace("\r", " ").replace("\n", " ")
    parameters = message.get_params(failobj=[], unquote=True)
    if not parameters:
        return "", {}

    found: dict[str, str] = {}
    for name, content in parameters[1:]:
        # RFC 5987: filename*=UTF-8''caf%C3%A9.png
        text = unquote(content[2]) if isinstance(content, tuple) else content
        found[name.lower()] = text
    return parameters[0][0].lower(), found


def _plain_name(name: str, number: int) -> str:
    """The last part of a path that a client sends, without control characters."""
    last = re.split(r"[/\\]", name)[-1]
    plain = "".join(character for character in last if character.isprintable())
    return plain[:_LONGEST_NAME] or ("image" if number == 1 else f"image-{number}")


def _malformed(message: str) -> ServiceError:
    return ServiceError(422, "malformed", message)
