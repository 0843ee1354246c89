"""The page `/docs`: the description of the service (OpenAPI) as one static HTML page.

In:  the OpenAPI description and the settings.
Out: HTML that requests nothing but its own style sheet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .service_settings import ServiceSettings, flag_of

STYLE = Path(__file__).with_name("api_page.css")
_TEMPLATE = Path(__file__).with_name("api_page.html")
_LIMITS = {
    "max_bytes": "largest body of a request, in bytes (413)",
    "max_pixels": "largest width x height of an image (413)",
    "max_files": "most images of a request (413)",
    "receive_timeout": "seconds in which a request must arrive (408)",
    "timeout": "seconds from a received request to its response (504)",
    "max_queue": "images that are received and not yet answered (503 with Retry-After)",
}


def api_page(description: Mapping[str, Any], settings: ServiceSettings) -> str:
    """Returns the page.

    Args:
        description: OpenAPI, as FastAPI makes it.
        settings: their limits are listed.
    """
    from jinja2 import Environment, select_autoescape

    page = Environment(autoescape=select_autoescape(default=True), trim_blocks=True)
    template = page.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    limits = [
        {
            "name": name,
            "value": f"{getattr(settings, name):,}",
            "flag": flag_of(name),
            "text": text,
        }
        for name, text in _LIMITS.items()
    ]
    return template.render(
        title=description["info"]["title"],
        description=description["info"]["description"],
        limits=limits,
        paths=[
            _operation(method, path, operation)
            for path, operations in description["paths"].items()
            for method, operation in operations.items()
        ],
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    content = operation["responses"].get("200", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    bodies = operation.get("requestBody", {}).get("content", {})

    return {
        "id": path.strip("/") or "page",
        "method": method.upper(),
        "path": path,
        "description": operation.get("description", operation.get("summary", "")).split("\n\n"),
        "example": operation.get("x-example"),
        "parameters": [_parameter(each) for each in operation.get("parameters", ())],
        "bodies": [
            {"kind": kind, "text": body["schema"].get("description", "")}
            for kind, body in bodies.items()
        ],
        "fields": list(_fields(schema)),
        "statuses": [
            {"code": code, "text": response["description"]}
            for code, response in operation["responses"].items()
        ],
    }


def _parameter(parameter: Mapping[str, Any]) -> dict[str, Any]:
    schema = parameter["schema"]
    default = schema.get("default", "")
    return {
        "name": parameter["name"],
        "kind": _kind(schema),
        "default": str(default).lower() if isinstance(default, bool) else default,
        "text": parameter.get("description", ""),
    }


def _fields(schema: Mapping[str, Any], prefix: str = "") -> Iterator[dict[str, Any]]:
    """The fields of an object and of the objects in it, with their paths."""
    for name, part in schema.get("properties", {}).items():
        yield {
            "name": f"{prefix}{name}",
            "kind": _kind(part),
            "text": part.get("description", ""),
            "required": name in schema.get("required", ()),
        }
        inner = part
        steps = f"{prefix}{name}"
        while "items" in inner or isinstance(inner.get("additionalProperties"), Mapping):
            is_list = "items" in inner
            steps += "[]" if is_list else ".NAME"
            inner = inner["items"] if is_list else inner["additionalProperties"]
        yield from _fields(inner, f"{steps}.")


def _kind(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        parts: Sequence[Mapping[str, Any]] = schema["anyOf"]
        return " or ".join(_kind(part) for part in parts if part.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "items" in schema:
        return f"list of {_kind(schema['items'])}"
    return str(schema.get("type", ""))
