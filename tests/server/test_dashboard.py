"""``tools/deploy/grafana.json``: it asks for what the server tells, and each of its panels has a place."""

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
#: A metric's name with the labels that it is chosen by.
METRIC = re.compile(r"(\w+)\{job=\"\$job\"\}")
#: Labels that a sum is made by.
LABELS = re.compile(r"by \((\w+)\)")


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def test_all_that_is_asked_for_is_told(serve: Server, dashboard):
    server = serve(atlas=True)
    server.post("/v1/completions", prompt="to be or not to be", max_tokens=2, temperature=0)
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    told: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            told.setdefault(sample.name, set()).update(sample.labels)
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 20
    for expression in expressions:
        names = METRIC.findall(expression)
        assert names
        for name in names:
            assert name in told, expression
            assert set(LABELS.findall(expression)) <= told[name], expression
        assert expression.count("(") == expression.count(")")
    asked = json.dumps(dashboard["templating"])
    assert "label_values(num_requests_running, job)" in asked
    assert "num_requests_running" in told


def test_every_panel_has_a_place_and_says_what_it_shows(dashboard):
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        assert panel["description"].endswith(".")
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
