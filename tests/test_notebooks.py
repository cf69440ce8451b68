"""The notebooks: they run, follow one plan and show a picture; what is committed is what their sources give."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

# Looked for, not imported: these take seconds, and collecting the tests should not wait for them.
if not all(find_spec(name) for name in ("ipykernel", "jupytext", "nbclient")):
    pytest.skip("needs ipykernel, jupytext and nbclient", allow_module_level=True)

from tests.conftest import REPOSITORY
from tools import notebooks

PLAN = ["smallest example", "picture", "equation", "exercise", "read in the code"]
SOURCES = notebooks.sources()
NAMES = [source.stem for source in SOURCES]
TINY = """\
# %% [markdown]
# # Does it run?

# %%
import ipywidgets
from IPython.display import HTML, display

display(ipywidgets.IntSlider(3), HTML("<b>bold</b>"))

# %% tags=["solution"]
print("a")
print("b")
"""


def sections(notebook):
    """Return the cells under each heading of the second level that has a word of the plan, and the title's under ''.

    A heading may stand in the middle of a cell, which then belongs to both sections.
    """
    found = {"": []}
    name = ""
    for cell in notebook.cells:
        found[name].append(cell)
        for heading in (
            re.findall(r"^## (.+)", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else ()
        ):
            name = next((part for part in PLAN if part in heading.lower()), name)
            found.setdefault(name, []).append(cell)
    return found


def outputs(cells):
    return [output for cell in cells for output in cell.get("outputs", [])]


def is_picture(output):
    data = output.get("data", {})
    return bool({"image/png", "image/svg+xml"} & set(data)) or bool(
        re.search(r"<(img|svg)\b", "".join(data.get("text/html", "")))
    )


@pytest.mark.model
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
class TestEveryNotebook:
    def test_it_runs_without_a_network_and_shows_a_picture_without_a_kernel(self, source, tmp_path):
        ran = notebooks.execute(notebooks.read(source), tmp_path)
        shown = outputs(ran.cells)
        assert not [o for o in shown if o.get("name") == "stderr"]
        assert not [o for o in shown if notebooks.WIDGET_VIEW in o.get("data", {})]
        # JupyterLab would put white behind the figure of a dark page
        assert not [o for o in shown if "needs_background" in o.get("metadata", {})]
        assert any(is_picture(o) for o in outputs(sections(ran)["picture"]))
        for output in shown:  # what a reader would see instead of a view
            text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            assert not re.search(r"<[\w.]+ object at 0x|<[\w.]+ at 0x", text), text[:200]
        for cell in ran.cells:
            if "solution" in cell.metadata.get("tags", []):
                assert all(o.data["text/html"].startswith("<details><summary") for o in cell.outputs)
        assert len(notebooks.written(ran)) < notebooks.LARGEST
        # what it wrote it wrote elsewhere
        assert sorted(p.name for p in (tmp_path / "notebooks").iterdir()) == []

    def test_it_follows_the_plan(self, source):
        parts = sections(notebooks.read(source))
        title = parts[""][0].source.splitlines()[0]
        assert re.fullmatch(r"# .+\?", title), title
        assert [name for name in parts if name] == PLAN
        set_up = next(cell for cell in parts[""] if cell.cell_type == "code")
        assert re.search(r"^(from|import) .*atlas_kit", set_up.source, re.MULTILINE)
        written = sections(notebooks.read(source, latex=True))
        assert "$$" in "".join(cell.source for cell in written["equation"])
        assert "<dl><dd>" in "".join(cell.source for cell in parts["equation"])
        solved = [
            name
            for name, cells in parts.items()
            if any("solution" in c.metadata.get("tags", []) for c in cells)
        ]
        assert solved == ["exercise"]

    def test_its_formulas_are_seen_without_a_network(self, source):
        prose = [cell.source for cell in notebooks.read(source).cells if cell.cell_type == "markdown"]
        assert not [text for text in prose if re.search(r"\$|\\[a-z]", re.sub(r"`[^`]*`", "", text))]

    def test_what_follows_is_called_what_it_is_called(self, source):
        ends = notebooks.read(source).cells[-1].source
        titles = {other.name: notebooks.read(other).cells[0].source.splitlines()[0] for other in SOURCES}
        for label, name in re.findall(r"\[([^\]]+)\]\((\d\d_\w+)\.ipynb\)", ends):
            assert re.sub(r"^# \d+\. ", "", titles[f"{name}.py"]) == " ".join(label.split())
        number = NAMES.index(source.stem)
        assert number + 1 == len(NAMES) or f"({NAMES[number + 1]}.ipynb)" in ends

    def test_the_solution_and_what_it_gives_are_folded(self, source):
        for cell in notebooks.read(source).cells:
            if "solution" in cell.metadata.get("tags", []):
                # the first line is what a folded cell shows
                first, *rest = cell.source.splitlines()
                assert first == "with folded():"
                assert all(line.startswith("    ") for line in rest if line)
                assert cell.metadata["jupyter"]["source_hidden"]

    def test_what_it_names_exists(self, source):
        cells = notebooks.read(source).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        named = re.findall(r"\]\(((?!https?:|#|attachment:)[^)#]+)", prose)
        named += [f"../{path}" for path in re.findall(r"`((?:atlas_kit|formats|tools)/[\w/.]*\w)`", prose)]
        reading = "\n".join(cell.source for cell in sections(notebooks.read(source))[PLAN[-1]])
        assert "atlas_kit/" in reading
        for path in named:
            assert (notebooks.FOLDER / path).exists(), path

    def test_the_committed_notebook_is_what_the_source_gives(self, source):
        assert notebooks.drift([source]) == []
        assert source.with_suffix(".ipynb").stat().st_size < notebooks.LARGEST


def test_every_committed_notebook_has_a_source_and_a_line_in_the_readme():
    assert notebooks.strangers() == []
    page = (notebooks.FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\((\d\d_\w+)\.ipynb\)", page) == NAMES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder of notebooks with one source, 01_tiny."""
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    (tmp_path / "01_tiny.py").write_text(TINY, encoding="utf-8")
    return tmp_path


class TestMakingThem:
    def test_the_same_source_gives_the_same_bytes(self, folder):
        import nbformat

        assert notebooks.main([]) == 0
        first = (folder / "01_tiny.ipynb").read_bytes()
        (folder / "01_tiny.ipynb").unlink()
        assert notebooks.main(["01"]) == 0
        assert (folder / "01_tiny.ipynb").read_bytes() == first
        notebook = nbformat.read(folder / "01_tiny.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert [cell.id for cell in notebook.cells] == ["cell-1", "cell-2", "cell-3"]
        assert notebook.cells[2].metadata["jupyter"]["source_hidden"] is True

    @pytest.mark.parametrize("shown", [(), ("01",)])
    def test_check_tells_of_drift(self, folder, monkeypatch, capsys, shown):
        monkeypatch.setattr(notebooks, "SHOWN", shown)
        assert notebooks.main(["--check"]) == 1
        assert "01_tiny.ipynb is missing" in capsys.readouterr().err
        notebooks.main([])
        assert notebooks.main(["--check"]) == 0
        source = folder / "01_tiny.py"
        source.write_text(TINY.replace("bold", "bolder"), encoding="utf-8")
        assert notebooks.main(["--check"]) == 1
        assert "01_tiny.ipynb is out of date" in capsys.readouterr().err

    def test_check_tells_of_notebooks_without_a_source(self, folder, capsys):
        notebooks.main([])
        (folder / "02_stray.ipynb").write_text("{}", encoding="utf-8")
        assert notebooks.main(["--check"]) == 1
        assert "02_stray.ipynb has no source" in capsys.readouterr().err

    def test_a_shown_notebook_keeps_pictures_and_no_widget_state(self, folder, monkeypatch):
        monkeypatch.setattr(notebooks, "SHOWN", ("01",))
        notebooks.main([])
        text = (folder / "01_tiny.ipynb").read_text(encoding="utf-8")
        assert "<b>bold</b>" in text
        assert "IntSlider(value=3)" in text
        for trace in ("widget", "iopub", str(folder), str(Path.home()) + "/"):
            assert trace not in text.replace("ipywidgets", "")
        before = (folder / "01_tiny.ipynb").stat().st_mtime_ns
        notebooks.main([])  # nothing changed, so nothing runs
        assert (folder / "01_tiny.ipynb").stat().st_mtime_ns == before

    def test_a_picture_is_kept_once(self):
        import nbformat

        def shown(html):
            data = {"text/html": html, "image/png": "iVBORw0KGgo=\n", "text/plain": "a picture"}
            return nbformat.v4.new_output("display_data", data)

        node = nbformat.v4.new_notebook()
        outputs = [shown('<img src="data:image/png;base64,iVBORw0KGgo=">'), shown("<p>another</p>")]
        node.cells = [nbformat.v4.new_code_cell("", outputs=outputs)]
        first, second = notebooks.cleaned(node).cells[0].outputs
        assert set(first.data) == {"text/html", "text/plain"}
        assert set(second.data) == {"text/html", "text/plain", "image/png"}

    def test_shown_without_outputs_is_drift(self, folder, monkeypatch):
        notebooks.main([])
        monkeypatch.setattr(notebooks, "SHOWN", ("01",))
        assert notebooks.main(["--check"]) == 1

    def test_nothing_by_that_name(self, folder):
        with pytest.raises(SystemExit):
            notebooks.main(["99"])


class TestRunning:
    def test_a_failing_cell_says_what_and_where(self, folder):
        (folder / "01_tiny.py").write_text("# %%\n1 / 0\n", encoding="utf-8")
        assert notebooks.main(["--execute"]) == 1

    def test_no_connection_leaves_the_machine(self, folder):
        code = 'import socket\nsocket.create_connection(("192.0.2.1", 80), timeout=1)\n'
        (folder / "01_tiny.py").write_text(f"# %%\n{code}", encoding="utf-8")
        with pytest.raises(Exception, match="has to work offline"):
            notebooks.execute(notebooks.read(folder / "01_tiny.py"))

    def test_what_it_writes_to_the_samples_is_a_copy(self, tmp_path):
        import nbformat

        sample = REPOSITORY / "sample_data" / "MANIFEST.toml"
        before = sample.read_bytes()
        node = nbformat.v4.new_notebook()
        code = 'open("../sample_data/MANIFEST.toml", "w").close()'
        node.cells = [nbformat.v4.new_code_cell(code)]
        notebooks.execute(node, tmp_path)
        assert sample.read_bytes() == before
        assert (tmp_path / "sample_data" / "MANIFEST.toml").read_bytes() == b""
