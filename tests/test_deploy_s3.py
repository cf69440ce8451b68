"""``tools/deploy/kubernetes-s3``: Kubernetes knows all of it, and what it starts is a server on a bucket."""

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
FILE = DEPLOY / "kubernetes-s3" / "server.yaml"
TEXT = FILE.read_text(encoding="utf-8")
ALL: list[dict[str, Any]] = list(yaml.safe_load_all(TEXT))


def resource(kind: str, name: str = "atlas-server") -> dict[str, Any]:
    (found,) = (one for one in ALL if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


SET = resource("StatefulSet")["spec"]
POD = SET["template"]["spec"]
(CONTAINER,) = POD["containers"]
VARIABLES = {one["name"]: one for one in CONTAINER["env"]}


def config() -> ServerConfig:
    """Return how the server is set up that the file starts."""
    context = serve_command.make_context("serve", list(CONTAINER["args"]))
    options = {name: value for name, value in context.params.items() if value not in (None, ())}
    variables = {"LLAMA_ARG_HOST": "0.0.0.0"}  # the image's
    variables |= {name: str(one.get("value", "1")) for name, one in VARIABLES.items()}
    return ServerConfig.from_sources(options, environment=variables)


@pytest.mark.parametrize("version", ["1.30", ""], ids=["1.30", "newest"])
def test_kubernetes_knows_all_of_it(version):
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    assert len(ALL) == 4
    for one in ALL:
        validator.validate(one, version or validator.latest_version(), strict=True)


def test_it_starts_servers_that_share_a_bucket():
    found = config()
    assert found.remembers
    assert found.atlas_memory_dir == "s3://bucket/memories"
    assert SET["replicas"] > 1
    assert VARIABLES["ATLAS_REPLICA_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    known = {name for row in table() for name in row.variables}
    assert set(re.findall(r"\b(?:LLAMA|ATLAS)_[A-Z_]+\b", TEXT)) <= known


def test_what_waits_for_the_store_is_on_a_volume_that_comes_back():
    mounts = {one["mountPath"]: one["name"] for one in CONTAINER["volumeMounts"]}
    (claim,) = SET["volumeClaimTemplates"]
    assert mounts[config().atlas_memory_spool] == claim["metadata"]["name"]
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {one["name"] for one in POD["volumes"]} | {claim["metadata"]["name"]}
    assert set(mounts.values()) == volumes


def test_what_is_named_is_there():
    labels = SET["template"]["metadata"]["labels"]
    assert SET["selector"]["matchLabels"] == labels
    assert SET["serviceName"] == resource("Service", "atlas-server-replicas")["metadata"]["name"]
    for one in ALL:
        if one["kind"] == "Service":
            assert one["spec"]["selector"] == labels
    assert resource("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    models = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "models.yaml").read_text(encoding="utf-8")))
    (volume,) = (one for one in POD["volumes"] if "persistentVolumeClaim" in one)
    assert volume["persistentVolumeClaim"]["claimName"] in {one["metadata"]["name"] for one in models}
    for secret in re.findall(r"create secret generic ([a-z-]+)", TEXT):
        assert f"name: {secret}" in TEXT.partition("apiVersion")[2]


def test_kubernetes_waits_until_the_memory_is_saved():
    word, before = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"
    ends = config().drain_seconds + END_SECONDS + SAVE_SECONDS
    assert POD["terminationGracePeriodSeconds"] > int(before) + ends


def test_the_image_has_what_speaks_to_the_store():
    """The extras of the line that builds it are ours, and one of them is for stores."""
    project = (DEPLOY.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = re.findall(r"EXTRAS=([a-z,]+)", TEXT)
    names = extras.split(",")
    assert {"serve", "cloud"} <= set(names)
    assert all(re.search(rf"^{name} = \[", project, re.M) for name in names)
    assert CONTAINER["image"] in TEXT.partition("apiVersion")[0]
