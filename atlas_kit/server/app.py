"""The web application: routes, what every request passes, and how errors are told."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from atlas_kit import __version__
from atlas_kit.errors import AtlasError, MissingExtraError
from atlas_kit.server.problems import ApiError, in_words
from atlas_kit.server.sleeping import Awake
from atlas_kit.server.streams import ClientGoneError, told

if TYPE_CHECKING:
    from fastapi import FastAPI

    from atlas_kit.server.cors import Pages
    from atlas_kit.server.service import Service

#: The modules with the endpoints, in the order in which the API's document lists them.
ROUTES = (
    "health",
    "models",
    "completions",
    "chat",
    "messages",
    "responses",
    "conversations",
    "embeddings",
    "native",
    "native_text",
    "native_state",
    "atlas",
    "memory_views",
    "metrics",
    "trace",
    "page",
    "refused",
)

#: Those that the first requests ask for.
EARLY = ("health", "models", "completions", "chat", "metrics")


def create_app(service: Service) -> FastAPI:
    """Return the application of a service, whose life is the caller's: ``start`` it before, ``stop`` it afterwards.

    Raises
    ------
    MissingExtraError
        FastAPI is not installed.
    """
    app, complete = begun_app(service)
    complete()
    return app


def begun_app(service: Service, *, inner: bool = False) -> tuple[FastAPI, Callable[[], None]]:
    """Return the application of a service with the endpoints that first requests ask for, and what adds the others.

    Whoever asks for another endpoint before that is called gets it nonetheless, somewhat later. ``inner``: what every
    request passes is around it already (``guarded``).

    Raises
    ------
    MissingExtraError
        FastAPI is not installed.
    """
    try:
        with _models_later():
            from fastapi import FastAPI
            from fastapi.exceptions import RequestValidationError
            from starlette.exceptions import HTTPException
            from starlette.requests import Request
            from starlette.responses import Response
    except ImportError as error:
        raise MissingExtraError("the server", "serve") from error
    from atlas_kit.server.asgi import Gate, asks_anthropic
    from atlas_kit.server.cors import Cors
    from atlas_kit.server.json_response import JsonResponse

    app = FastAPI(
        title="atlas_kit server",
        version=__version__,
        summary="An OpenAI-compatible server whose memory outlives a restart.",
        docs_url=None,
        redoc_url=None,
        default_response_class=JsonResponse,
    )
    app.state.service = service
    routes, first = app.router.routes, len(app.router.routes)
    added = {name: _add(app, name) for name in EARLY}
    paths = frozenset(route.path for name in EARLY for route in _router(name).routes)

    def complete() -> None:
        if len(added) == len(ROUTES):
            return
        for name in ROUTES:
            if name not in added:
                added[name] = _add(app, name)
        routes[first:] = [route for name in ROUTES for route in added[name]]
        from atlas_kit.server.routes.page import offer_files

        offer_files(app)

    def answer(problem: ApiError, request: Request) -> Response:
        body = problem.anthropic() if asks_anthropic(request.scope) else problem.openai()
        return JsonResponse(body, problem.status, problem.headers)

    @app.exception_handler(ApiError)
    @app.exception_handler(AtlasError)
    async def known(request: Request, error: Exception) -> Response:
        return answer(told(error), request)

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(_invalid(error.errors()), request)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        sentence = {
            400: "The body is not JSON.", 404: "There is no such endpoint.", 405: "This endpoint takes another method.",
        }  # fmt: skip
        problem = ApiError(
            error.status_code,
            sentence.get(error.status_code, str(error.detail)),
            code="invalid_json" if error.status_code == 400 else None,
        )
        found = answer(problem, request)
        found.headers.update(error.headers or {})
        return found

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return answer(told(error), request)

    app.add_middleware(_Completing, complete=complete, paths=paths)
    if not inner:
        pages, gate = _guards(service)
        app.add_middleware(Awake, service=service)
        app.add_middleware(Gate, **gate)
        app.add_middleware(Cors, pages=pages)
    return app, complete


def guarded(app: Any, service: Service) -> Any:
    """Return an application with what every request passes around it."""
    from atlas_kit.server.asgi import Gate
    from atlas_kit.server.cors import Cors

    pages, gate = _guards(service)
    return Cors(Gate(Awake(app, service), **gate), pages)


def _guards(service: Service) -> tuple[Pages, dict[str, Any]]:
    from atlas_kit.server.asgi import Keys
    from atlas_kit.server.cors import Pages

    config = service.config
    keys = Keys(config.keys)
    pages = Pages(config.origins, anybody=bool(keys), hosts=() if keys else config.hosts)
    admin = config.admin if keys else None
    return pages, {"keys": keys, "max_body": config.max_body, "pages": pages, "admin": admin}


@contextlib.contextmanager
def _models_later() -> Iterator[None]:
    """Let pydantic compile models that are defined within when they are used first.

    FastAPI defines those of the OpenAPI document when it is imported: a third of the time that this takes, for what
    few ask for.
    """
    from pydantic import BaseModel

    before = BaseModel.model_config
    BaseModel.model_config = {**before, "defer_build": True}
    try:
        yield
    finally:
        BaseModel.model_config = before


def visit_routes(app: FastAPI) -> None:
    """Let FastAPI make of the endpoints what it needs to call them; it does that when it first comes past one."""

    async def visit() -> None:
        scope = {
            "type": "http", "method": "GET", "path": "/there/is/no/such/path", "headers": [], "query_string": b"",
            "root_path": "", "app": app,
        }  # fmt: skip
        with contextlib.suppress(HTTPException):
            await app.router(scope, _nothing, _nothing)

    from starlette.exceptions import HTTPException

    asyncio.run(visit())


async def _nothing(*_: Any) -> Any:
    return None


def _router(name: str) -> Any:
    return importlib.import_module(f"atlas_kit.server.routes.{name}").router


def _add(app: FastAPI, name: str) -> list[Any]:
    """Add the endpoints of a module, and return what they are among the application's."""
    from atlas_kit.server.schemas_errors import documented

    before = len(app.router.routes)
    app.include_router(_router(name), responses=documented(messages=name == "messages"))
    return app.router.routes[before:]


class _Completing:
    """Adds the endpoints that are missing when somebody asks for one of them."""

    def __init__(self, app: Any, complete: Callable[[], None], paths: frozenset[str]) -> None:
        self._app, self._complete, self._paths = app, complete, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through."""
        if scope["path"] not in self._paths:
            self._complete()
        await self._app(scope, receive, send)


def _invalid(errors: Any) -> ApiError:
    """Return what a client is told about a request that is not as the schema says."""
    first = errors[0] if errors else {"loc": (), "msg": "it is not valid"}
    if first.get("type") == "json_invalid":
        return ApiError(400, "The body is not JSON.", code="invalid_json")
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place) or None
    message = in_words(first)
    if param is None and first.get("type") == "missing":
        return ApiError(400, "The request has no body.", code="invalid_value")
    return ApiError(400, f"{param or 'The request'}: {message}.", param=param, code="invalid_value")


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[FastAPI]:
    """Start a service, and stop it afterwards: for tests and for who embeds the server."""
    try:
        await service.start()
        yield create_app(service)
    finally:
        await service.stop()
