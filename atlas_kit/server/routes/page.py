"""The pages for people: ``/`` to talk to the model and see its memory work, ``/docs`` to read and try the API.

Both are plain files that load nothing from elsewhere. The page shares the widgets' modules, so each folder is offered
below ``/static/`` at the place where the package has it: relative imports mean the same here and there.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

import atlas_kit
from atlas_kit.server.problems import ApiError

router = APIRouter(include_in_schema=False)
_PACKAGE = Path(atlas_kit.__file__).parent
_OWN = _PACKAGE / "server" / "static"
#: Nothing from other hosts, nothing inside another page; swagger-ui writes styles into its elements.
_POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class _Files(StaticFiles):
    """A folder of files that a browser asks for again when they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file, or that it has not changed."""
        found = await super().get_response(path, scope)
        found.headers.update(_HEADERS)
        return found


def offer_files(app: FastAPI) -> None:
    """Let an application offer the files of its pages, for reading only."""
    for folder in ("server/static", "widgets/static"):
        app.mount(f"/static/{folder}", _Files(directory=_PACKAGE / folder))
    swagger = _swagger_ui()
    if swagger is not None:
        app.mount("/static/swagger", _Files(directory=swagger))


def _swagger_ui() -> Path | None:
    """Return the folder with swagger-ui's files, which a package on PyPI brings."""
    spec = find_spec("swagger_ui")
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        folder = Path(place) / "static"
        if (folder / "swagger-ui-bundle.js").is_file():
            return folder
    return None


def _page(name: str, styles: str = "'self'") -> Response:
    policy = f"{_POLICY}; style-src {styles}"
    return FileResponse(
        _OWN / name, media_type="text/html", headers={**_HEADERS, "content-security-policy": policy}
    )


@router.get("/")
async def page() -> Response:
    """Return the page to talk to the model."""
    return _page("index.html")


@router.get("/atlas")
async def elsewhere() -> Response:
    """Lead to the page."""
    return RedirectResponse("/")


@router.get("/docs")
async def docs() -> Response:
    """Return the page of the API."""
    if _swagger_ui() is None:
        raise ApiError(501, "The page of the API needs the package swagger-ui-py; /openapi.json has it all.")
    return _page("docs.html", "'self' 'unsafe-inline'")
