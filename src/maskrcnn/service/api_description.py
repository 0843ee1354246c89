"""What the service says about itself: types of its responses, bodies and statuses, for OpenAPI."""

from __future__ import annotations

from typing import Any, TypedDict

from .json_schema import schema_of
from .prediction_json import ShownCategory
from .service_error import ErrorJson
from .upload import KINDS

JSON = "application/json"
PNG = "image/png"
EXAMPLE = 'curl -F files=@photo.jpg "http://127.0.0.1:8000/predict?min_score=0.5&masks=polygons"'
BODIES = {
    "multipart/form-data": {
        "type": "object",
        "description": "One or several images in fields named files.",
        "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        "required": ["files"],
    },
    "application/octet-stream": {
        "type": "string",
        "format": "binary",
        "description": "The bytes of one image file; also with its own type, such as image/png.",
    },
    JSON: {
        "type": "object",
        "description": 'Images as base64: {"images": [{"name": "a.png", "data": "iVBO..."}]}.',
        "properties": {
            "images": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "data": {"type": "string"}},
                    "required": ["data"],
                },
            }
        },
        "required": ["images"],
    },
}
STATUSES = {
    400: "The Host header is not allowed, or the request is not HTTP/1.1.",
    401: "The API key is missing or wrong.",
    403: "A page of another site sent the request.",
    406: f"Accept: {PNG} with several images.",
    408: "The request did not arrive in time.",
    413: "The request exceeds a limit, which the body names: bytes, pixels or files.",
    415: f"The Content-Type is not {KINDS}.",
    422: "An image is unreadable, or the request is malformed.",
    500: "The server failed on this request. The log explains the id of the body.",
    503: "The queue is full, or the server starts or stops; Retry-After says when to try again.",
    504: "The response took too long.",
}


class LimitsJson(TypedDict):
    """The limits of a request."""

    max_bytes: int
    max_pixels: int
    max_files: int
    timeout: float


class InfoJson(TypedDict):
    """The response of `/info`."""

    name: str
    version: str
    categories: list[ShownCategory]
    has_masks: bool
    has_keypoints: bool
    min_score: float
    """Used where a request does not have its own."""
    lowest_score: float
    """The model reports no objects below it."""
    limits: LimitsJson
    api_key_required: bool


class HealthJson(TypedDict):
    """The response of `/health`."""

    status: str
    """ready, starting, stopping, busy too long, or failed."""


class ErrorBody(TypedDict):
    """The body of an error."""

    error: ErrorJson


def described(text: str, kind: Any) -> dict[str, Any]:
    """A response of OpenAPI whose body is JSON of a type."""
    return {"description": text, "content": {JSON: {"schema": schema_of(kind)}}}


def error_described(status: int) -> dict[str, Any]:
    """A response of OpenAPI that is an error."""
    return described(STATUSES[status], ErrorBody)
