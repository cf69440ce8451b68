"""``tools/deploy/grafana.json``: it asks for what the server tells, for all of it, and its panels have a place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import REPOSITORY
from tests.server.conftest import Server

DASHBOARD = Path(REPOSITORY) / "tools" / "deploy" / "grafana.json"
#: What is no metric in an expression: its functions, and what stands in brackets or is a number.
FUNCTIONS = {
    "sum",
    "avg",
    "max",
    "rate",
    "increase",
    "changes",
    "by",
    "time",
    "histogram_quantile",
    "label_values",
}
NO_NAMES = re.compile(r"\[[^]]*\]|\{[^}]*\}|\bby \([^)]*\)|\b\d+(\.\d+)?\b|(?<=, )(?:job|instance)(?=\))")


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


@pytest.fixture
def told(serve: Server, tmp_path) -> dict[str, set[str]]:
    """Return the names that /metrics has, with their labels, after a request and a save."""
    server = serve(atlas_memory_file=str(tmp_path / "served.atlas"))
    for atlas in ({}, {"session_id": "anna"}):
        server.post("/v1/completions", prompt="to be or not to be", max_tokens=2, temperature=0, atlas=atlas)
    assert server.run(server.service.save())
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions_of(dashboard: Any) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    found += [one["expr"] for one in dashboard["annotations"]["list"]]
    return found + [
        one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"
    ]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b[a-z_]\w+", NO_NAMES.sub(" ", expression))) - FUNCTIONS


def test_all_that_is_asked_for_is_told(dashboard, told):
    expressions = expressions_of(dashboard)
    assert len(expressions) > 30
    for expression in expressions:
        names = names_in(expression)
        assert names, expression
        assert names <= set(told), expression
        labels = set(re.findall(r"(\w+)=~?\"", expression))
        labels |= {one for group in re.findall(r"\bby \(([^)]*)\)", expression) for one in group.split(", ")}
        assert labels <= {"job", "instance"}.union(*(told[name] for name in names)), expression
        assert expression.count("(") == expression.count(")")


def test_all_that_the_server_tells_is_shown(dashboard, told):
    shown = set().union(*map(names_in, expressions_of(dashboard)))
    own = {re.sub(r"_(count|sum)$", "_bucket", name) for name in told if ":" not in name}
    assert {name for name in own if not name.endswith("_created")} <= shown


def test_every_panel_has_a_place_and_says_what_it_shows(dashboard):
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert len(set(letters)) == len(letters)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
