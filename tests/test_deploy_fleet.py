"""``tools/deploy/fleet``: Kubernetes knows all of it, what it names is there, and its job is a command of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.cli._group import group

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

FILE = Path(__file__).resolve().parent.parent / "tools" / "deploy" / "fleet" / "dask.yaml"
ALL: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.read_text(encoding="utf-8")))


def resource(kind: str, name: str) -> dict[str, Any]:
    (found,) = (one for one in ALL if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


PODS = {one["metadata"]["name"]: one["spec"]["template"] for one in ALL if "template" in one["spec"]}


@pytest.mark.parametrize("version", ["1.30", ""], ids=["1.30", "newest"])
def test_kubernetes_knows_all_of_it(version):
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    assert len(ALL) == 6
    for one in ALL:
        validator.validate(one, version or validator.latest_version(), strict=True)


def test_what_is_named_is_there():
    service = resource("Service", "atlas-fleet-scheduler")
    scheduler = PODS["atlas-fleet-scheduler"]
    assert service["spec"]["selector"] == scheduler["metadata"]["labels"]
    (port,) = service["spec"]["ports"]
    (open_port,) = scheduler["spec"]["containers"][0]["ports"]
    assert open_port["name"] == port["targetPort"]
    address = f"tcp://{service['metadata']['name']}:{port['port']}"
    for name in ("atlas-fleet-worker", "atlas-fleet-validate"):
        assert address in PODS[name]["spec"]["containers"][0]["command"]
    for name, pod in PODS.items():
        volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
        assert {one["name"] for one in pod["spec"]["containers"][0]["volumeMounts"]} == set(volumes), name
    claim = PODS["atlas-fleet-validate"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert resource("PersistentVolumeClaim", claim)
    for one in ALL:
        if one["kind"] == "Deployment":
            assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]


def test_the_job_is_a_command_of_ours():
    tool, name, *arguments = PODS["atlas-fleet-validate"]["spec"]["containers"][0]["command"]
    assert tool == "atlas-tool"
    command = group.get_command(None, name)
    context = command.make_context(name, list(arguments))
    assert context.params["scheduler"].startswith("tcp://")
    assert context.params["table"].endswith(".parquet")


def test_dask_has_these_commands():
    pytest.importorskip("distributed", reason="needs the cloud extra")
    from distributed.cli.dask_scheduler import main as scheduler
    from distributed.cli.dask_worker import main as worker

    for pod, command in (("atlas-fleet-scheduler", scheduler), ("atlas-fleet-worker", worker)):
        words = PODS[pod]["spec"]["containers"][0]["command"]
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known


def test_no_pod_may_more_than_it_needs():
    for name, pod in PODS.items():
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, name
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
        assert container["image"] == "atlas-kit:fleet", name
    (rule,) = resource("NetworkPolicy", "atlas-fleet")["spec"]["ingress"]
    assert [set(one) for one in rule["from"]] == [{"podSelector"}]


def test_the_remarks_build_its_image():
    project = (FILE.parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = re.findall(r"EXTRAS=([a-z,]+)", FILE.read_text(encoding="utf-8"))
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in extras.split(","))
