"""Start a private JupyterLab or Notebook 7 and drive it through Playwright. Knows nothing of atlas_kit.

The server gets a home, settings and a token of its own, and ends with the ``with`` block. In the page,
``--expose-app-in-browser`` gives ``window.jupyterapp``: the functions here wait on its state, not on time.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.waiting import LONG, free_port

if TYPE_CHECKING:
    from playwright.sync_api import Page


#: No news, no autosave that rewrites a notebook under a test, and cells outside the window stay in the page.
SETTINGS: dict[str, dict[str, object]] = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
START_SECONDS = END_SECONDS = 300


@dataclass(frozen=True)
class Lab:
    """A running server."""

    url: str  #: with the base_url, ends with "/"
    token: str
    root: Path  #: the folder that it shows
    log: Path

    def at(self, path: str, **query: str) -> str:
        """Return the address of a path below the base_url, with the token."""
        pairs = "".join(f"&{name}={quote(value, safe='')}" for name, value in query.items())
        return f"{self.url}{path}?token={self.token}{pairs}"

    def log_text(self) -> str:
        """Return what the server wrote so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def end_kernels(self) -> None:
        """End every kernel and its session: what a test had at work is no load on the next one."""
        with urllib.request.urlopen(self.at("api/sessions"), timeout=END_SECONDS) as reply:
            sessions = json.load(reply)
        for session in sessions:
            request = urllib.request.Request(self.at(f"api/sessions/{session['id']}"), method="DELETE")
            with urllib.request.urlopen(request, timeout=END_SECONDS):
                pass


def private_environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Jupyter neither sees nor changes its user's files."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "PYTEST"))}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    folders = {
        "HOME": "",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "run",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    private = {name: str(home / folder) for name, folder in folders.items()}
    fixed = {
        "JUPYTER_PLATFORM_DIRS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(Path.home() / ".cache"),  # matplotlib would look for fonts for seconds
    }
    return {**env, **private, **fixed, **more}


def write_settings(home: Path, settings: Mapping[str, Mapping[str, object]]) -> None:
    """Write the user settings of JupyterLab's plugins."""
    for plugin, values in settings.items():
        path = home / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")


@contextlib.contextmanager
def running_lab(
    root: Path,
    *,
    app: str = "lab",
    base_url: str = "/",
    environment: Mapping[str, str] | None = None,
    theme: str = "JupyterLab Light",
    arguments: tuple[str, ...] = (),
) -> Iterator[Lab]:
    """Run ``jupyter lab``, ``notebook`` or ``server`` (``app``) on the folder ``root``."""
    with tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True) as folder:
        home, port, token = Path(folder), free_port(), secrets.token_hex(16)
        write_settings(home, {**SETTINGS, "apputils-extension/themes": {"theme": theme}})
        command = [sys.executable, "-m", "jupyter", app, "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.base_url={base_url}"]
        command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
        command += [*arguments] if app == "server" else ["--expose-app-in-browser", *arguments]
        log = home / "log.txt"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=root,
                env=private_environment(home, environment or {}),
            )
            try:
                lab = Lab(f"http://127.0.0.1:{port}{base_url}", token, root, log)
                _wait_until_up(lab, process)
                yield lab
            finally:
                _end(process)


def _wait_until_up(lab: Lab, process: subprocess.Popen[bytes]) -> None:
    """Return as soon as the server answers."""
    last = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{lab.log_text()[-3000:]}")
        try:
            with urllib.request.urlopen(lab.at("api"), timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > last:
                raise
            time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# --- in the page ------------------------------------------------------------------------------------------


def open_lab(page: Page, lab: Lab, path: str = "", workspace: str = "") -> None:
    """Show JupyterLab, with the file or folder ``path`` open, and return when it has settled.

    Pages do not disturb each other, and nothing is open from before, unless they name the same workspace.
    """
    place = f"lab/workspaces/{workspace or secrets.token_hex(4)}"
    page.goto(lab.at(f"{place}/tree/{quote(path)}" if path else place))
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell", timeout=1000 * LONG)
    page.evaluate("window.jupyterapp.restored.then(() => null)")


def patient_saves(page: Page) -> None:
    """Let saves wait a minute for what the kernel says, which a busy machine may need; call it before a page is opened.

    A reader is kept waiting for some seconds only, and then what was known before is saved.
    """
    script = (Path(__file__).parents[2] / "atlas_kit" / "jupyter" / "static" / "still.js").read_text("utf-8")
    (waits,) = re.findall(r"const SAVE_WAITS_MS = (\d+);", script)
    page.add_init_script(
        f"""(() => {{
            const timer = window.setTimeout.bind(window);
            window.setTimeout = (work, ms, ...rest) => timer(work, ms === {waits} ? 60_000 : ms, ...rest);
        }})()"""
    )


def open_path(page: Page, path: str) -> None:
    """Open a file in a JupyterLab that is already there, as a double-click does."""
    page.evaluate(
        "(path) => window.jupyterapp.commands.execute('docmanager:open', { path }).then(() => null)", path
    )


def double_click(page: Page, name: str) -> None:
    """Double-click a file in the file browser."""
    page.locator(f".jp-DirListing-item[title^='Name: {name}']").dblclick()


def open_notebook(page: Page, lab: Lab, path: str) -> None:
    """Open a notebook in JupyterLab and return when its kernel is idle."""
    open_lab(page, lab, path)
    wait_for_kernel(page)


def wait_for_kernel(page: Page) -> None:
    """Return when the kernel of the notebook in front is idle; a dialog in the way is an error."""
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    page.wait_for_function(
        """() => document.querySelector(".jp-Dialog")
            || window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === "idle" """,
        timeout=1000 * LONG,
    )
    if page.locator(".jp-Dialog").count():
        raise RuntimeError("a dialog is open: " + page.locator(".jp-Dialog").first.inner_text())


def run_all(page: Page, timeout: float = LONG) -> list[str]:
    """Run all cells of the notebook in front; return the errors, one line each.

    ``timeout`` is in seconds. A cell that fails ends the run, so this waits for "all done, or an error".
    """
    page.evaluate(
        """() => {
            const over = () => { window.allCellsRan = true; };
            window.allCellsRan = false; // cells keep their numbers from the last time until their turn comes
            window.jupyterapp.commands.execute('notebook:run-all-cells').then(over, over);
        }"""
    )
    page.wait_for_function(
        """() => {
            const panel = window.jupyterapp.shell.currentWidget;
            const cells = [...panel.content.model.cells].filter((cell) => cell.type === "code");
            const outputs = (cell) => cell.outputs.toJSON();
            const failed = cells.some((cell) => outputs(cell).some((o) => o.output_type === "error"));
            const done = cells.every((cell) => cell.executionCount !== null || !cell.sharedModel.source.trim());
            return window.allCellsRan && (failed || done) && panel.sessionContext.session.kernel.status === "idle";
        }""",
        timeout=timeout * 1000,
    )
    return cell_errors(page)


def cell_errors(page: Page) -> list[str]:
    """Return the errors among the outputs of the notebook in front: ``cell 3: ValueError: ...``."""
    found: list[str] = page.evaluate(
        """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].flatMap((cell, index) =>
            cell.type !== "code" ? [] : cell.outputs.toJSON()
                .filter((output) => output.output_type === "error")
                .map((output) => `cell ${index}: ${output.ename}: ${output.evalue}`))"""
    )
    return found


def kernel_json(page: Page, expression: str, code: str = "") -> Any:
    """Run ``code`` in the kernel of the notebook in front, then return the JSON value of an expression."""
    reply = page.evaluate(
        """async ([code, expression]) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const user_expressions = { value: `__import__("json").dumps(${expression})` };
            const future = kernel.requestExecute({ code, store_history: false, user_expressions });
            return (await future.done).content;
        }""",
        [code, expression],
    )
    value = reply.get("user_expressions", {}).get("value", {})
    if reply["status"] != "ok" or value.get("status") != "ok":
        raise RuntimeError(f"the kernel could not say {expression}: {reply}"[:800])
    return json.loads(ast.literal_eval(value["data"]["text/plain"]))


def notebook_json(*sources: str, outputs: Mapping[int, list[dict[str, object]]] | None = None) -> str:
    """Return a notebook of code cells as the text of an ``.ipynb``, with the outputs given by cell number."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {},
            "execution_count": None,
            "outputs": (outputs or {}).get(number, []),
            "source": source,
        }
        for number, source in enumerate(sources)
    ]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    )
