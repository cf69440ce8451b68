"""The two addresses of the server's extension: ``atlas-kit/explore/<path>?q=<json>`` and ``atlas-kit/static/<name>``.

Both need the user's token or cookie and only read. Questions go to ``explorer`` in worker threads,
so that a slow disk never holds up the server. A question with a passphrase comes as the body of a POST, because
addresses end up in logs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.utils import ensure_async, url_path_join
from tornado import web

from atlas_kit.errors import printable
from atlas_kit.explorer.explorer import pack, preload
from atlas_kit.jupyter.lending import OpenExplorers
from atlas_kit.jupyter.places import find_file, is_dangling

T = TypeVar("T")

_NO_FILE = "There is no such file in the server's folder."
_DANGLING = "This link leads to a file that is not there."

#: A question names a few numbers and a filter; the longest address that common proxies pass is shorter.
MAX_QUESTION = 8 * 1024
#: More than any view of a file shows at once.
MAX_REPLY = 64 * 1024 * 1024
#: Characters of the name that a view gives itself.
MAX_NAME = 64
#: Few, because a disk gets no faster by being asked more.
THREADS = 8

#: Served by name from the folders in which they are kept; nothing else is.
STATIC_FOLDERS = [Path(__file__).parent / "static", Path(__file__).parent.parent / "widgets" / "static"]
CONTENT_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


class ExploreHandler(APIHandler):
    """Answers one question about one file below the server's root, in the form of ``explore.pack``."""

    auth_resource = "contents"

    def initialize(self, explorers: OpenExplorers, pool: ThreadPoolExecutor) -> None:
        """Take what all requests share."""
        self._explorers = explorers
        self._pool = pool

    @web.authenticated
    @authorized
    async def get(self, path: str) -> None:
        """Reply to ``?q=``, a JSON object, about the file at ``path``."""
        question = parse_question(self.get_query_argument("q", "{}", strip=False))
        if "passphrase" in question:
            raise web.HTTPError(400, "A question with a passphrase is sent by POST")
        await self._reply(path, question)

    @web.authenticated
    @authorized(action="read")  # type: ignore[untyped-decorator]
    async def post(self, path: str) -> None:
        """Reply to the body, a JSON object, about the file at ``path``."""
        await self._reply(path, parse_question(self.request.body.decode("utf-8", "replace")))

    async def _reply(self, path: str, question: dict[str, Any]) -> None:
        root = getattr(self.contents_manager, "root_dir", None)
        if not root:
            raise web.HTTPError(501, "This server does not keep its files on a disk")
        file = await self._in_thread(find_file, root, path)
        if file is None:
            dangling = await self._in_thread(is_dangling, root, path)
            raise web.HTTPError(404, _DANGLING if dangling else _NO_FILE)
        if await self._is_hidden(path):
            raise web.HTTPError(404, _NO_FILE)
        view = self.get_query_argument("view", "")[:MAX_NAME]
        reply = await self._in_thread(self._answer, file, path, view, question)
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Disposition", "attachment")
        self.finish(reply, set_content_type="application/octet-stream")

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def _is_hidden(self, path: str) -> bool:
        """Tell whether the server hides the file."""
        contents = self.contents_manager
        if contents.allow_hidden:
            return False
        # is_hidden is a coroutine in some managers, and a coroutine that is not awaited is always true
        is_hidden: Callable[[str], Any] = contents.is_hidden
        return bool(await ensure_async(is_hidden(path)))

    def _answer(self, file: Path, path: str, view: str, question: dict[str, Any]) -> bytes:
        """Return the packed reply. Runs in a worker thread."""
        try:
            with self._explorers.lend(file, view) as explorer:
                reply, buffers = explorer.answer(question)
        except OSError as error:
            raise web.HTTPError(404, f"The file cannot be read: {error.strerror}") from None
        if sum(len(buffer) for buffer in buffers) > MAX_REPLY:
            raise web.HTTPError(413, "The question asks for more than can be shown at once")
        if "tables" in reply:  # a summary; in a cache of models, what a link leads to is called by a number
            reply["name"] = printable(path.rstrip("/").rpartition("/")[2])
        return pack(reply, buffers)


def parse_question(text: str) -> dict[str, Any]:
    """Return the JSON object of a question, or raise HTTP 400 or 414."""
    if len(text) > MAX_QUESTION:
        raise web.HTTPError(414, "The question is too long")
    try:
        question = json.loads(text)
    except (ValueError, RecursionError):
        raise web.HTTPError(400, "The question is not JSON") from None
    if not isinstance(question, dict):
        raise web.HTTPError(400, "The question is not a JSON object")
    return question


class StaticHandler(JupyterHandler):
    """Serves the scripts and styles of the explorer, each from its one home in the package."""

    @web.authenticated
    def get(self, name: str) -> None:
        """Send one file."""
        kind = CONTENT_TYPES.get(Path(name).suffix)
        file = next((folder / name for folder in STATIC_FOLDERS if (folder / name).is_file()), None)
        if kind is None or file is None:
            raise web.HTTPError(404)
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", "no-cache")  # ask again with the ETag: a new release shows at once
        self.finish(file.read_bytes())


def handlers(base_url: str) -> list[tuple[Any, ...]]:
    """Return the rows for tornado, below the server's ``base_url``."""
    pool = ThreadPoolExecutor(THREADS, "atlas-explore")
    pool.submit(preload)
    shared = {"explorers": OpenExplorers(), "pool": pool}
    return [
        (url_path_join(base_url, r"/atlas-kit/explore/(.+)"), ExploreHandler, shared),
        (url_path_join(base_url, r"/atlas-kit/static/((?:[a-z]+/)?[a-z]+\.[a-z]+)"), StaticHandler),
    ]
