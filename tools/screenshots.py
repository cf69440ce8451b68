"""Take the screenshots in docs/: JupyterLab after a double-click and with widgets in a notebook, and a server's page.

``python tools/screenshots.py [NAMES]`` writes ``sample_data/expected/NAME.png``. Needs Chromium, and llama.cpp for the
pictures with a model. Fonts and the clock of the machine are in the pictures, so they are looked at and not compared.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser_fixtures import CHROMIUM_ARGUMENTS, find_chromium  # noqa: E402

from tests.jupyter.labdriver import (  # noqa: E402
    Lab,
    notebook_json,
    open_lab,
    open_notebook,
    run_all,
    running_lab,
)

TARGET = ROOT / "sample_data" / "expected"
LARGEST = 200_000  # bytes: they are part of the repository
WIDTH, HEIGHT = 1180, 800

MEMORY_LAB = """\
from pathlib import Path
from atlas_kit.widgets import MemoryLab

MemoryLab("sample_data/models/tiny-python.gguf", Path("sample_data/documents/argparse.py"), height=150)"""
#: Two memories that have read different documents; then what tells them apart on a text that neither has read.
LEARN_TWO = """\
from pathlib import Path
from atlas_kit.llama import AtlasSession, open_engine
from atlas_kit.settings.recommend import recommend

model = "sample_data/models/tiny-python.gguf"
engine = open_engine(model, n_threads=1)
settings = recommend(model).settings
documents = {name: Path(f"sample_data/documents/{name}.py").read_text() for name in ("argparse", "statistics")}
texts = {name: engine.tokenize(text) for name, text in documents.items()}
for name, tokens in texts.items():
    with AtlasSession(engine, memory=settings) as session:
        session.feed(tokens[:2500])
        session.save(f"{name}.atlas", context=False)
probe = b"".join(map(engine.piece, texts["argparse"][2500:2700])).decode()"""
MEMORY_COMPARE = """\
from atlas_kit.widgets import MemoryCompare

comparison = MemoryCompare("argparse.atlas", "statistics.atlas", model=engine, probe=probe)
comparison.compare_behaviour()
comparison"""
#: Tokens that the memory has read when its picture is taken.
READ = 3000


def explorer(page: Page, lab: Lab) -> bytes:
    """Show a file as a double-click in JupyterLab does."""
    open_lab(page, lab, "sample_data/gguf/tiny.gguf")
    page.locator(".ax").get_by_role("tab", name="Bytes").click()
    expect(page.locator(".ax")).to_contain_text("0x00000000 to")
    return page.screenshot()


def memory_lab(page: Page, lab: Lab) -> bytes:
    """Let a memory read for some seconds."""
    show_notebook(page, lab, "memory-lab", MEMORY_LAB)
    output = page.locator(".jp-OutputArea-output").last
    output.get_by_role("button", name="Start").click()
    page.wait_for_function(
        "(least) => Number(document.querySelector('.atlas-lab').dataset.shown) >= least",
        arg=READ,
        timeout=300_000,
    )
    output.get_by_role("button", name="Pause").click()
    output.locator(".tabs").get_by_role("button", name="Recall").click()
    output.get_by_label("Recall").select_option("always")
    output.get_by_label("Question").fill("How is an argument added to a parser?")
    output.get_by_label("Question").press("Enter")
    expect(output.locator(".atlas-recall .answer > ol")).to_be_visible(timeout=60_000)
    return picture_of(page)


def memory_compare(page: Page, lab: Lab) -> bytes:
    """Put two memories side by side."""
    show_notebook(page, lab, "memory-compare", LEARN_TWO, MEMORY_COMPARE)
    output = page.locator(".jp-OutputArea-output").last
    expect(output).to_contain_text("Largest differences")
    expect(output).not_to_contain_text("Computing")
    return picture_of(page)


def server_page(page: Page, lab: Lab) -> bytes:
    """Let the model of a server read code in a conversation, and go on with it in another."""
    command = [
        sys.executable,
        "-m",
        "atlas_kit",
        "serve",
        "-m",
        "sample_data/models/tiny-python.gguf",
        "--port",
        "0",
    ]
    command += ["--atlas", "--atlas-auto", "--atlas-memory-dir", "memories", "--temp", "0", "--threads", "1"]
    text = (lab.root / "sample_data" / "documents" / "statistics.py").read_text(encoding="utf-8")
    text = text[text.index("def mean(data") :]
    with subprocess.Popen(
        command, cwd=lab.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            said = next(line for line in server.stderr if "listening at " in line)
            page.set_viewport_size({"width": 1280, "height": HEIGHT})
            page.goto(said.partition("listening at ")[2].strip())
            expect(page.locator(".state")).to_have_attribute("data-state", "ready")
            page.get_by_label("New session").fill("anna")
            page.get_by_role("button", name="Begin", exact=True).click()
            for number, piece in enumerate((text[:3000], text[3000:3600])):
                page.get_by_role("button", name="New conversation").click(force=True) if number else None
                page.get_by_label("Your message").fill(piece)
                page.get_by_role("button", name="Send").click()
                expect(page.locator(".message .worth")).to_be_visible()
            page.wait_for_timeout(3000)  # the numbers of the last second
            return page.screenshot()
        finally:
            server.terminate()


def show_notebook(page: Page, lab: Lab, name: str, *sources: str) -> None:
    """Run a notebook without the sidebars."""
    (lab.root / f"{name}.ipynb").write_text(notebook_json(*sources), encoding="utf-8")
    open_notebook(page, lab, f"{name}.ipynb")
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area').then(() => null)")
    errors = run_all(page, timeout=300)
    if errors:
        raise SystemExit(f"{name}: {errors[0]}")
    expect(page.locator(".jp-OutputArea-output").last).to_be_visible()


def picture_of(page: Page) -> bytes:
    """Take the last cell with all of its output, however tall."""
    cell = page.locator(".jp-CodeCell").last
    box = cell.bounding_box()
    assert box
    page.set_viewport_size({"width": WIDTH, "height": int(box["height"]) + 200})
    page.evaluate("window.jupyterapp.shell.currentWidget.content.node.scrollTo(0, 1e6)")
    page.wait_for_timeout(1000)  # canvases are drawn anew
    return cell.screenshot()


def palette(picture: bytes) -> bytes:
    """Write a PNG with at most 256 colours: a third of the bytes, and hardly a difference that one sees."""
    from PIL import Image  # comes with matplotlib

    file = io.BytesIO()
    few = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, kmeans=4, dither=Image.Dither.NONE)
    few.save(file, "png", optimize=True)
    return file.getvalue()


SCENES: dict[str, Callable[[Page, Lab], bytes]] = {
    "explorer": explorer,
    "memory-lab": memory_lab,
    "memory-compare": memory_compare,
    "server-page": server_page,
}


def lay_out(folder: Path) -> dict[str, str]:
    """Put the Lab's extension of this checkout where Jupyter looks; return the environment that says so."""
    jupyter = ROOT / "atlas_kit" / "jupyter"
    shutil.copytree(jupyter / "labextension", folder / "share" / "labextensions" / "atlas-kit")
    (folder / "etc" / "jupyter_server_config.d").mkdir(parents=True)
    shutil.copy(jupyter / "server-config.json", folder / "etc" / "jupyter_server_config.d" / "atlas_kit.json")
    shutil.copytree(ROOT / "sample_data", folder / "root" / "sample_data")
    return {
        "PYTHONPATH": str(ROOT),
        "JUPYTER_PATH": str(folder / "share"),
        "JUPYTER_CONFIG_PATH": str(folder / "etc"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENES)} (all)")
    parser.add_argument("--dark", action="store_true", help="in the dark theme")
    parser.add_argument("-o", "--output", type=Path, default=TARGET, help="where to put them")
    options = parser.parse_args()
    theme = "JupyterLab Dark" if options.dark else "JupyterLab Light"
    expect.set_options(timeout=60_000)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        environment = lay_out(Path(name))
        browser = playwright.chromium.launch(
            executable_path=find_chromium(playwright), args=CHROMIUM_ARGUMENTS
        )
        with running_lab(Path(name) / "root", environment=environment, theme=theme) as lab:
            for scene in options.names or SCENES:
                page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
                picture = palette(SCENES[scene](page, lab))
                page.close()
                (options.output / f"{scene}.png").write_bytes(picture)
                large = "  LARGER THAN ALLOWED" if len(picture) > LARGEST else ""
                print(f"{scene}.png: {len(picture):,} bytes{large}", flush=True)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
