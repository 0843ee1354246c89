"""The service as an ASGI application: `create_app(predictor)`.

In:  a `Predictor` and settings.
Out: an application for uvicorn or any other ASGI server, with the paths /, /predict, /info,
     /health, /metrics, /docs and /openapi.json.
"""

from __future__ import annotations

import difflib
import mimetypes
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ..annotations.shown_values import shown
from ..prediction.predictor import Predictor
from ..version import __version__
from .api_description import (
    BODIES,
    EXAMPLE,
    JSON,
    PNG,
    STATUSES,
    HealthJson,
    InfoJson,
    described,
    error_described,
)
from .api_page import STYLE, api_page
from .gate import Gate, crash
from .prediction_json import (
    ImageResponse,
    MaskForm,
    PredictionJson,
    ResponseOptions,
    shown_categories,
)
from .prediction_service import PredictionService
from .receive_request import in_time, received
from .service_error import ServiceError
from .service_settings import ServiceSettings

PAGE = Path(__file__).with_name("page")
"""The browser page: static files."""
_OPTIONS = ("min_score", "masks", "simplify", "overlay", "preview")


def create_app(
    predictor: Predictor, settings: ServiceSettings | None = None, *, name: str = "maskrcnn"
) -> Gate:
    """Makes the service of a predictor, an ASGI application.

    Args:
        predictor: a model or an exported file, with its lowest `min_score`, so that requests may
            ask for any score.
        settings: limits, batches and access; by default those of `ServiceSettings`.
        name: of the model, which `/info` reports.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.service.app import create_app
        >>> app = create_app(mr.Predictor("nuclei"), name="nuclei")
        >>> app.service.state
        'starting'
    """
    settings = settings or ServiceSettings()
    service = PredictionService(predictor, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await service.start()
        yield
        await service.stop()

    api = FastAPI(
        title=name,
        version=__version__,
        description="Detects objects in images: boxes, categories, masks and keypoints.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_predict(api, service)
    _add_state(api, service, name)
    _add_docs(api, settings)
    _add_errors(api)
    _add_page(api)

    app: Any = api
    if settings.allow_origins:
        from starlette.middleware.cors import CORSMiddleware

        app = CORSMiddleware(
            api,
            allow_origins=list(settings.allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    return Gate(app, service)


def _add_predict(api: FastAPI, service: PredictionService) -> None:
    @api.post(
        "/predict",
        responses={
            200: {
                "description": f"The objects; with Accept: {PNG} and one image, its overlay.",
                "content": described("", PredictionJson)["content"] | {PNG: {}},
            },
            **{status: error_described(status) for status in STATUSES},
        },
        openapi_extra={
            "x-example": EXAMPLE,
            "requestBody": {
                "required": True,
                "content": {kind: {"schema": schema} for kind, schema in BODIES.items()},
            },
        },
        response_class=Response,
    )
    async def predict(
        request: Request,
        min_score: Annotated[
            float, Query(ge=0, le=1, description="Leave out objects with a lower score.")
        ] = service.settings.min_score,
        masks: Annotated[
            MaskForm, Query(description="Write masks as RLE, as polygons with holes, or not.")
        ] = "rle",
        simplify: Annotated[
            float, Query(ge=0, le=1000, description="Tolerance of polygons in pixels; 0 = exact.")
        ] = 0.0,
        overlay: Annotated[
            bool, Query(description="Add the image with its objects drawn on it, a base64 PNG.")
        ] = False,
        preview: Annotated[
            bool, Query(description="Add the image as it was read, 8 bits, a base64 PNG.")
        ] = False,
    ) -> Response:
        """Detects the objects in one or several images.

        Coordinates are pixels of the image as it is seen (EXIF orientation applied). The response
        is a COCO annotation file; with masks=polygons each object has "polygons" instead of
        "segmentation".
        """
        _check_options(request)
        if _accepts_png(request):
            options = ResponseOptions(min_score, masks, simplify, overlay=True)
            (part,) = await _parts(request, service, options, is_alone=True)
            return Response(part.overlay, media_type=PNG)
        options = ResponseOptions(min_score, masks, simplify, overlay, preview)
        parts = await _parts(request, service, options)
        return Response(await service.json(parts, request.state.response), media_type=JSON)


async def _parts(
    request: Request, service: PredictionService, options: ResponseOptions, is_alone: bool = False
) -> list[ImageResponse]:
    """The objects in the images of a request; with `is_alone`, of its only image."""
    async with received(request, service) as images:
        if is_alone and len(images) > 1:
            raise _one_expected(len(images))
        work = service.predict(images, options, request.state.response)
        parts = await in_time(request, work, service.settings)

    request.state.log |= {
        "images": len(parts),
        "objects": sum(len(part.objects) for part in parts),
    }
    return parts


def _add_state(api: FastAPI, service: PredictionService, name: str) -> None:
    """Adds the paths that report on the service itself."""
    settings = service.settings

    @api.get("/info", responses={200: described("The model and the limits.", InfoJson)})
    async def info() -> Response:
        """The model, its categories and the limits of a request."""
        config = service.predictor.config

        content: InfoJson = {
            "name": name,
            "version": __version__,
            "categories": shown_categories(config.categories),
            "has_masks": config.mask is not None,
            "has_keypoints": config.keypoint is not None,
            "min_score": settings.min_score,
            "lowest_score": service.predictor.min_score,
            "limits": {
                "max_bytes": settings.max_bytes,
                "max_pixels": settings.max_pixels,
                "max_files": settings.max_files,
                "timeout": settings.timeout,
            },
            "api_key_required": settings.api_key is not None,
        }
        return JSONResponse(content)

    @api.get(
        "/health",
        responses={
            200: described("The model answers.", HealthJson),
            503: described("It does not.", HealthJson),
        },
    )
    async def health() -> Response:
        """Whether the model answers: 200 when ready, else 503."""
        state = await service.check()
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @api.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus: requests, images, objects, batches, memory, processor time."""
        content, kind = service.metrics.text()
        return Response(content, headers={"content-type": kind})


def _add_page(api: FastAPI) -> None:
    # the registry of Windows may hold another type, which browsers do not run
    mimetypes.add_type("text/javascript", ".js")
    files = StaticFiles(directory=PAGE, html=True)
    # a route per file: a mount of all paths would hide wrong methods of the others
    names = ("", *sorted(path.name for path in PAGE.iterdir()))
    api.router.routes += [Route(f"/{name}", files, include_in_schema=False) for name in names]


def _add_docs(api: FastAPI, settings: ServiceSettings) -> None:
    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(api_page(api.openapi(), settings))

    @api.get("/docs.css", include_in_schema=False)
    async def style() -> Response:
        return Response(STYLE.read_text(encoding="utf-8"), media_type="text/css")


def _add_errors(api: FastAPI) -> None:
    """Gives errors of FastAPI the form of all errors."""

    @api.exception_handler(HTTPException)
    async def of_path(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:100]
        message = f"{request.method} {path}: {error.detail.lower()}; /docs lists the paths"
        code = error.detail.lower().replace(" ", "_")
        raised = ServiceError(error.status_code, code, message, headers=error.headers)
        return _error_response(request, raised)

    @api.exception_handler(RequestValidationError)
    async def of_query(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        expected = first["msg"].replace("Input should be", "expected")
        message = f"{first['loc'][-1]}: {expected}, got {shown(first['input'], 40)}"
        return _error_response(request, ServiceError(422, "query", message))

    @api.exception_handler(Exception)  # the gate logs it
    async def of_crash(request: Request, _: Exception) -> Response:
        return _error_response(request, crash())

    @api.exception_handler(ServiceError)
    async def of_service(request: Request, error: ServiceError) -> Response:
        return _error_response(request, error)


def _error_response(request: Request, error: ServiceError) -> Response:
    request.state.log |= {"error": error.code, "reason": error.message}
    return JSONResponse(error.body(request.state.request_id), error.status, error.headers)


def _check_options(request: Request) -> None:
    """Checks that the query has known names only.

    Raises:
        ServiceError: it has others.
    """
    for name in request.query_params:
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"expected {', '.join(_OPTIONS)}"
            raise ServiceError(422, "query", f"unknown option {shown(name, 40)}; {advice}")


def _accepts_png(request: Request) -> bool:
    """Whether the client wants the overlay alone."""
    kinds = [
        kind.partition(";")[0].strip() for kind in request.headers.get("accept", "").split(",")
    ]
    return PNG in kinds and JSON not in kinds


def _one_expected(count: int) -> ServiceError:
    return ServiceError(
        406,
        "accept",
        f"Accept: {PNG}: expected one image, got {count}; accept {JSON} and add ?overlay=true",
    )
