"""Bring pages that live elsewhere in the repository into the site; mkdocs calls this (``hooks`` in mkdocs.yml).

A link in a committed page says where its target lies in the repository, so that it also works where nothing is built.
Here it is turned into the address of that page in the site; a link to a file that is no part of the site becomes
plain text. Equations become MathML, which every browser draws without a script. Knows nothing of what the pages say.
"""

from __future__ import annotations

import base64
import html
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

#: Single pages: where each lies in the repository, and where in the site.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "formats/README.md": "formats/index.md",
    "notebooks/README.md": "notebooks/index.md",
    "tools/experiments/README.md": "experiments.md",
}
#: Folders of pages and pictures: pattern in the repository, folder in the site, what the name ends with there.
FOLDERS = (
    ("formats/*.md", "formats", ".md"),
    ("notebooks/*.ipynb", "notebooks", ".md"),
    ("sample_data/expected/*.png", "pictures", ".png"),
    ("sample_data/expected/*.svg", "pictures", ".svg"),
    ("tools/experiments/results/*.png", "pictures", ".png"),
)
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2`*\s*?$", re.M | re.S)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
_COG = re.compile(r"^<!-- \[\[\[.*?-->\n", re.M | re.S)
#: Script letters of the equations; the rest of the alphabet is there for the next one.
_SCRIPT = {chr(65 + i): chr(0x1D49C + i) for i in range(26)} | dict(zip("BEFHILMR", "ℬℰℱℋℐℒℳℛ", strict=True))
_BAR = re.compile(r"<mo[^>]*>(&#x0*2016;|‖|&#x0*2225;|∥)</mo>")
#: What ``folded`` shows; a solution is folded once on a page, with its code.
_UNFOLDED = re.compile(r"\A<details><summary.*?</summary>(.*)</details>\Z", re.S)
_MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.S)


def site_paths() -> dict[str, str]:
    """Return where each page and picture of the repository lies in the site, both relative with ``/``."""
    found = {
        f"docs/{path.relative_to(ROOT / 'docs').as_posix()}": path.relative_to(ROOT / "docs").as_posix()
        for path in sorted((ROOT / "docs").rglob("*"))
        if path.is_file()
    }
    for pattern, folder, suffix in FOLDERS:
        for path in sorted(ROOT.glob(pattern)):
            found[path.relative_to(ROOT).as_posix()] = f"{folder}/{path.stem}{suffix}"
    return found | PAGES


def in_site(text: str, home: str) -> str:
    """Return a page whose links lead to pages of the site.

    Parameters
    ----------
    text
        Markdown, as it lies in the repository.
    home
        Where it lies there, such as ``formats/atlas.md``.
    """
    where = site_paths()
    start = posixpath.dirname(where.get(home, home))

    def link(found: re.Match[str]) -> str:
        bang, label, target = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return found[0]
        goal = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        folder = f"{goal}/README.md"
        goal = folder if folder in where else goal
        if goal in where:
            return f"{bang}[{label}]({posixpath.relpath(where[goal], start)}{mark}{anchor})"
        if not (ROOT / goal).exists():
            return found[0]  # mkdocs says that it leads nowhere
        return label

    pieces, at = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(link, _COG.sub("", text[at : fence.start()])), fence[0]]
        at = fence.end()
    return "".join([*pieces, _LINK.sub(link, _COG.sub("", text[at:]))])


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by name."""
    import nbformat

    from tools import notebooks

    pieces: list[str] = []
    pictures: dict[str, bytes] = {}
    source = notebooks.read(path.with_suffix(".py"), latex=True)  # formulas are drawn as such here
    for cell, written in zip(nbformat.read(path, as_version=4).cells, source.cells, strict=True):
        if cell.cell_type == "markdown":
            pieces.append(
                written.source.replace("$$\n$$", "$$\n\n$$")
            )  # an equation is a paragraph of its own
            continue
        solution = "solution" in cell.metadata.get("tags", [])
        parts = [f"```python\n{cell.source}\n```"]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if 'class="ak"' in data.get(
                "text/html", ""
            ):  # a widget's page, to look around in as in JupyterLab
                parts.append(f'<div class="saved">\n{_in_one_piece(data["text/html"])}\n</div>')
            elif "image/png" in data:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above draws](../pictures/{name})")
            elif "text/html" in data:
                shown = _UNFOLDED.sub(r"\1", data["text/html"]) if solution else data["text/html"]
                parts.append(f'<div class="output">\n{_in_one_piece(shown)}\n</div>')
            else:
                said = output.get("text") or data.get("text/plain", "")
                parts.append(f"```text\n{said.rstrip()}\n```")
        block = "\n\n".join(parts)
        if solution:
            block = '??? note "Solution"\n\n' + re.sub(r"^(?=.)", "    ", block, flags=re.M)
        pieces.append(block)
    note = f"*This is `notebooks/{path.name}`; `make lab` opens it in JupyterLab, where every cell runs.*"
    title, _, rest = "\n\n".join(pieces).partition("\n")
    return f"{title}\n\n{note}\n{rest}\n", pictures


def _in_one_piece(page: str) -> str:
    """Return HTML without empty lines, which would end it in Markdown; in code they are seen all the same."""
    return re.sub(r"\n(?=[ \t]*\n)", "&#10;", page)


def with_mathml(content: str) -> str:
    """Return a page's HTML with its equations, which arithmatex left as LaTeX, as MathML."""
    from latex2mathml.converter import convert

    def equation(found: re.Match[str]) -> str:
        latex = html.unescape(found[2]).strip()[2:-2]
        latex = re.sub(r"\\tag\{(.*?)\}", r"\\qquad \\text{(\1)}", latex)
        # what the converter does not know: limits below a word, script letters, bars that do not grow
        latex = latex.replace(r"\min_", r"\min\limits_")
        latex = re.sub(
            r"\\mathcal\s*(?:\{([A-Z])\}|([A-Z]))", lambda found: _SCRIPT[found[1] or found[2]], latex
        )
        drawn = convert(latex, display="inline" if found[1] == "span" else "block")
        return _BAR.sub(r'<mo stretchy="false">\1</mo>', drawn)

    return _MATH.sub(equation, content)


# --- what mkdocs calls ----------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that lie outside of ``docs/``."""
    from mkdocs.structure.files import File

    for source, target in site_paths().items():
        path = ROOT / source
        if source.startswith("docs/") or source == "README.md":
            continue
        if path.suffix == ".ipynb":
            page, pictures = notebook_page(path)
            files.append(File.generated(config, target, content=in_site(page, source)))
            for name, data in pictures.items():
                files.append(File.generated(config, f"pictures/{name}", content=data))
        elif path.suffix == ".md":
            text = in_site(path.read_text(encoding="utf-8"), source)
            files.append(File.generated(config, target, content=text))
        else:
            files.append(File.generated(config, target, abs_src_path=os.fspath(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn the links of the pages in ``docs/``; those of the others are turned when they are read."""
    return markdown if page.file.generated_by else in_site(markdown, f"docs/{page.file.src_uri}")


def on_page_content(html: str, **_: Any) -> str:
    """Draw the equations."""
    return with_mathml(html)
