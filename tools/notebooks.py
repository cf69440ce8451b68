"""Make ``notebooks/NN_name.ipynb`` (what people open) from ``NN_name.py`` (jupytext percent, what people edit).

``python tools/notebooks.py [NAMES]`` writes them, ``--check`` says which are out of date, ``--execute`` runs them too.
The same source gives the same bytes: cell ids are numbers, and nothing of the kernel, the clock or the machine is kept.
Most are committed without outputs; those of ``SHOWN`` with them, so that they can be read where nothing runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools.formulas import in_markdown  # noqa: E402

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = ROOT / "notebooks"
#: Committed with their outputs, by number.
SHOWN = ("05", "06")
LARGEST = 1_000_000  # bytes of a committed notebook
TIMEOUT = 300  # seconds for one cell, on a machine that does other things too
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# A notebook works without the internet. Python's audit events tell of every connection before it is made.
OFFLINE = """\
import sys

def offline(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1", "localhost"):
        raise PermissionError(f"a notebook wanted to connect to {args[1][0]}, and has to work offline")

sys.addaudithook(offline)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tools/notebooks.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="how a notebook's name begins, such as 03 (all)"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if something is out of date"
    )
    parser.add_argument(
        "--execute", action="store_true", help="run every notebook, those without outputs as a test"
    )
    options = parser.parse_args(arguments)
    chosen = [path for path in sources() if path.name.startswith(tuple(options.names or [""]))]
    if not chosen:
        parser.error(f"no notebook begins with {' or '.join(options.names)}")
    if options.check:
        problems = drift(chosen) + ([] if options.names else strangers())
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        return 1 if problems else 0
    from nbclient.exceptions import CellExecutionError

    failed = []
    for source in chosen:
        fresh = read(source)
        if options.execute or (shown(source) and drift([source])):
            print(f"{source.stem}: running", flush=True)
            try:
                ran = execute(fresh)
            except CellExecutionError as error:
                print(f"{source.stem} fails:\n{error}", file=sys.stderr)
                failed.append(source.stem)
                continue
            fresh = ran if shown(source) else fresh
        elif shown(source):
            continue
        source.with_suffix(".ipynb").write_text(written(fresh), encoding="utf-8")
        print(f"{source.stem}: written", flush=True)
    return 1 if failed else 0


def sources() -> list[Path]:
    """Return the notebooks' sources in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def shown(source: Path) -> bool:
    """Tell whether a notebook is committed with its outputs."""
    return source.name.startswith(SHOWN)


# ---- source to notebook


def read(source: Path, *, latex: bool = False) -> NotebookNode:
    """Return the notebook of a source, without outputs; the code of solutions is folded.

    Formulas are HTML, which every reader shows, also without a network; ``latex``: as they stand in the source.
    """
    import jupytext
    import nbformat

    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "markdown" and not latex:
            cell.source = in_markdown(cell.source)
        tags = cell.metadata.get("tags", [])
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if "solution" in tags and cell.cell_type == "code":
            cell.metadata["jupyter"] = {
                "source_hidden": True
            }  # what it gives is ``folded``: that stays so when it runs
    return notebook


def written(notebook: NotebookNode) -> str:
    """Return the bytes of a notebook's file as text."""
    import nbformat

    return nbformat.writes(notebook, version=4, indent=1, sort_keys=True).rstrip("\n") + "\n"


def drift(chosen: Sequence[Path]) -> list[str]:
    """Return a sentence for every committed notebook that is not what its source gives."""
    import nbformat

    problems = []
    for source in chosen:
        target = source.with_suffix(".ipynb")
        if not target.is_file():
            problems.append(f"{target.name} is missing. Run: python tools/notebooks.py {source.stem}")
            continue
        committed = nbformat.read(target, as_version=4)
        if shown(source):
            empty = not any(cell.get("outputs") for cell in committed.cells)
            committed = without_outputs(committed)
        else:
            empty = False
        if empty or written(committed) != written(read(source)):
            problems.append(f"{target.name} is out of date. Run: python tools/notebooks.py {source.stem}")
    return problems


def strangers() -> list[str]:
    """Return a sentence for every notebook without a source."""
    known = {source.stem for source in sources()}
    return [
        f"{path.name} has no source {path.stem}.py"
        for path in sorted(FOLDER.glob("*.ipynb"))
        if path.stem not in known
    ]


def without_outputs(notebook: NotebookNode) -> NotebookNode:
    """Return a copy as ``read`` gives it."""
    import nbformat

    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return copy


# ---- running


def execute(notebook: NotebookNode, folder: Path | None = None) -> NotebookNode:
    """Run a notebook in a copy of what it may touch, and return it with what it shows where no kernel runs.

    Parameters
    ----------
    notebook
        As ``read`` gives it.
    folder
        An empty folder for the copy and the kernel's home; by default one that is removed again.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell fails; the message has the cell and the traceback.
    """
    import nbformat

    if folder is None:
        with tempfile.TemporaryDirectory(prefix="atlas-notebook-") as name:
            return execute(notebook, Path(name))
    import matplotlib.font_manager  # noqa: F401 - looks for fonts here, once, and not in every kernel
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    workplace(folder)
    kernel = AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=KernelSpecManager(
            kernel_dirs=[str(Path(sys.prefix, "share", "jupyter", "kernels"))]
        ),
        connection_file=str(folder / "kernel.json"),
    )
    client = NotebookClient(
        nbformat.from_dict(notebook), km=kernel, timeout=TIMEOUT, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(folder / "notebooks")}}, extra_arguments=["--IPKernelApp.log_level=40"],
    )  # fmt: skip
    return cleaned(client.execute(env=environment(folder), cleanup_kc=True))


def workplace(folder: Path) -> None:
    """Lay out a copy of the checkout as notebooks see it: ``../sample_data`` may be written to, models are linked."""
    samples = ROOT / "sample_data"
    shutil.copytree(samples, folder / "sample_data", ignore=shutil.ignore_patterns("models"))
    (folder / "sample_data" / "models").symlink_to(samples / "models")
    for name in ("home", "notebooks", "site"):
        (folder / name).mkdir()
    (folder / "site" / "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """Return the kernel's environment: this checkout, a home of its own, one BLAS thread, no other settings."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("ATLAS_", "IPYTHON", "JUPYTER", "PYTEST_"))
    }
    return {
        **kept,
        "HOME": str(folder / "home"),
        "IPYTHONDIR": str(folder / "home" / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
        "XDG_CACHE_HOME": os.environ.get(
            "XDG_CACHE_HOME", str(Path.home() / ".cache")
        ),  # of matplotlib's fonts
    }


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """Return an executed notebook without what only the kernel that made it could use.

    Widgets leave their pictures: a saved state would hide them, and a view without a kernel is an error message.
    """
    import nbformat

    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data: dict[str, Any] = output.get("data", {})
            data.pop(WIDGET_VIEW, None)
            picture = data.get("image/png", "").strip()
            if picture and picture in data.get("text/html", ""):
                del data["image/png"]  # readers prefer HTML, and it would be in the file twice
    return notebook


if __name__ == "__main__":
    sys.exit(main())
