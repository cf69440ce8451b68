"""``tools/deploy/replicas``: Kubernetes knows all of it, and what it starts is a server of ours that shares a store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.cli.serve_cmd import command as serve_command
from atlas_kit.server.config import ServerConfig, table
from atlas_kit.server.run import END_SECONDS, SAVE_SECONDS

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

DEPLOY = Path(__file__).resolve().parent.parent / "tools" / "deploy"
FILE = DEPLOY / "replicas" / "server.yaml"
TEXT = FILE.read_text(encoding="utf-8")
ALL: dict[str, dict[str, Any]] = {one["kind"]: one for one in yaml.safe_load_all(TEXT)}
SPEC = ALL["Deployment"]["spec"]
POD = SPEC["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.mark.parametrize("version", ["1.30", ""], ids=["1.30", "newest"])
def test_kubernetes_knows_all_of_it(version):
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    assert sorted(ALL) == ["Deployment", "PodDisruptionBudget", "Service"]
    for one in ALL.values():
        validator.validate(one, version or validator.latest_version(), strict=True)


def test_what_is_named_is_there():
    labels = SPEC["template"]["metadata"]["labels"]
    assert labels == SPEC["selector"]["matchLabels"] == ALL["Service"]["spec"]["selector"]
    assert ALL["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (port,) = ALL["Service"]["spec"]["ports"]
    assert port["targetPort"] == CONTAINER["ports"][0]["name"]
    assert {one["name"] for one in POD["volumes"]} == {one["name"] for one in CONTAINER["volumeMounts"]}
    claims = yaml.safe_load((DEPLOY / "kubernetes" / "models.yaml").read_text(encoding="utf-8"))
    (claim,) = (one["persistentVolumeClaim"] for one in POD["volumes"] if "persistentVolumeClaim" in one)
    assert claim["claimName"] == claims["metadata"]["name"]
    secrets = {one["secretRef"]["name"] for one in CONTAINER["envFrom"]}
    secrets |= {
        one["valueFrom"]["secretKeyRef"]["name"]
        for one in CONTAINER["env"]
        if "secretKeyRef" in one.get("valueFrom", {})
    }
    assert secrets == set(re.findall(r"create secret generic (\S+)", TEXT))


def test_it_starts_several_servers_that_share_an_address():
    given = {one["name"]: one.get("value", "4") for one in CONTAINER["env"]}
    given["ATLAS_MEMORY_DIR"], *_ = re.findall(r"ATLAS_MEMORY_DIR=(\S+)", TEXT)
    known = {name for row in table() for name in row.variables}
    assert set(given) <= known
    context = serve_command.make_context("serve", list(CONTAINER["args"]))
    options = {name: value for name, value in context.params.items() if value not in (None, ())}
    config = ServerConfig.from_sources(options, environment=given)
    assert config.memory_address == "s3://bucket/memories"
    assert config.remembers
    assert SPEC["replicas"] > 1
    mounts = [one["mountPath"] for one in CONTAINER["volumeMounts"] if not one.get("readOnly")]
    assert any(str(config.atlas_memory_spool).startswith(f"{one}/") for one in mounts)
    word, before = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"
    enough = int(before) + config.drain_seconds + END_SECONDS + SAVE_SECONDS
    assert POD["terminationGracePeriodSeconds"] > enough


def test_the_image_has_what_speaks_to_the_store():
    (extras,) = re.findall(r"EXTRAS=(\S+)", TEXT)
    project = (DEPLOY.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert {"cloud", "serve"} <= set(extras.split(","))
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", project, re.M)
