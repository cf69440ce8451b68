"""What ``tools/deploy/`` says holds for this server: schemas, options, times, names, and the image's steps."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import image_steps
import pytest
from packaging.requirements import Requirement

from atlas_kit.cli.serve_cmd import command as serve_command
from atlas_kit.server.config import ServerConfig, table
from atlas_kit.server.run import END_SECONDS, SAVE_SECONDS
from tests.waiting import free_port

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

REPOSITORY = Path(__file__).resolve().parent.parent
DEPLOY = REPOSITORY / "tools" / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
IGNORED = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
STEPS = image_steps.read_steps(DOCKERFILE.read_text(encoding="utf-8"))
BUILD, RUN = image_steps.stages_of(STEPS)
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
CUDA = yaml.safe_load((DEPLOY / "compose.cuda.yaml").read_text(encoding="utf-8"))
FILL = DEPLOY / "fill-models.yaml"
PAGE = REPOSITORY / "docs" / "how-to" / "deploy-the-server.md"
UNIT = DEPLOY / "atlas-server.service"
PROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def resources() -> list[dict[str, Any]]:
    return [one for path in MANIFESTS for one in yaml.safe_load_all(text_of(path))]


def resource(kind: str, name: str = "atlas-server") -> dict[str, Any]:
    (found,) = (one for one in resources() if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


POD = resource("StatefulSet")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


def unit_values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text_of(UNIT), re.M)


# --- what each of them starts -----------------------------------------------------------------------------

ENTRYPOINT = ["atlas-tool", "serve"]


def environment_of_image() -> dict[str, str]:
    words = [word for step in RUN if step.name == "ENV" for word in step.words]
    return dict(word.split("=", 1) for word in words)


def started() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the arguments behind ``atlas-tool serve`` and the variables, by the file that starts it."""
    image = environment_of_image()
    plain = {"LLAMA_ARG_MODEL": "/models/m.gguf", "LLAMA_API_KEY": "secret"}
    container = {one["name"]: one.get("value", "1") for one in CONTAINER["env"]}
    (line,) = unit_values("ExecStart")
    unit = shlex.split(line)
    assert unit[0].endswith("/bin/atlas-tool")
    assert unit[1] == "serve"
    return {
        "Dockerfile": ([], {**image, **plain}),
        "compose.yaml": (
            COMPOSE["services"]["server"]["command"],
            {**image, **COMPOSE["services"]["server"]["environment"]},
        ),
        "compose.cuda.yaml": (CUDA["services"]["server"]["command"], {**image, **plain}),
        "server.yaml": (CONTAINER["args"], {**image, **container}),
        "atlas-server.service": (unit[2:], plain),
    }


def config_of(file: str) -> ServerConfig:
    """Return how the server is set up that a file starts."""
    arguments, variables = started()[file]
    context = serve_command.make_context("serve", list(arguments))
    options = {name: value for name, value in context.params.items() if value not in (None, ())}
    return ServerConfig.from_sources(options, environment=variables)


@pytest.mark.parametrize("file", started())
def test_what_is_started_is_a_configuration_of_this_server(file):
    config = config_of(file)
    assert config.model
    assert config.remembers == (file != "Dockerfile")
    assert config.atlas_memory_dir in {"/memories", "${STATE_DIRECTORY}"}
    assert (config.host != "127.0.0.1") == (file != "atlas-server.service")


@pytest.mark.parametrize("path", [*DEPLOY.glob("*.*"), DOCKERFILE, *MANIFESTS], ids=lambda path: path.name)
def test_variables_are_those_of_the_server(path):
    known = {name for row in table() for name in row.variables} | {"LLAMA_CPP_PYTHON"}
    named = set(re.findall(r"\b(?:LLAMA|ATLAS)_[A-Z_]+\b", text_of(path)))
    assert named <= known


@pytest.mark.parametrize("path", [*DEPLOY.glob("*.*"), *MANIFESTS], ids=lambda path: path.name)
def test_options_in_remarks_are_those_of_the_server(path):
    known = {option for parameter in serve_command.params for option in parameter.opts}
    remarks = re.findall(r"\((--[a-z-]+)\)|(--atlas[a-z-]*)", text_of(path))
    assert {first or second for first, second in remarks} <= known


# --- times ------------------------------------------------------------------------------------------------


def seconds_at_most(file: str) -> float:
    """Return how long the server that a file starts may take to end once it was told to."""
    return config_of(file).drain_seconds + END_SECONDS + SAVE_SECONDS


def test_compose_waits_until_the_memory_is_saved():
    grace = COMPOSE["services"]["server"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > seconds_at_most("compose.yaml")
    assert "stop_grace_period" not in CUDA["services"]["server"]


def test_kubernetes_waits_until_the_memory_is_saved():
    word, before = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"
    assert POD["spec"]["terminationGracePeriodSeconds"] > int(before) + seconds_at_most("server.yaml")


def test_systemd_waits_until_the_memory_is_saved():
    assert int(*unit_values("TimeoutStopSec")) > seconds_at_most("atlas-server.service")


# --- the image ---------------------------------------------------------------------------------------------


def test_hadolint_finds_nothing():
    linter = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    ran = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def pairs() -> dict[str, dict[str, str]]:
    """Return the build arguments of each variant."""
    cuda = CUDA["services"]["server"]["build"]["args"]
    return {"cpu": image_steps.defaults_of(STEPS), "cuda": {**image_steps.defaults_of(STEPS), **cuda}}


@pytest.mark.parametrize("variant", pairs())
def test_base_images_are_pinned_and_bring_one_python(variant):
    args = pairs()[variant]
    tags = [args[name].partition(":")[2] for name in ("BUILD_IMAGE", "RUN_IMAGE")]
    assert all(re.match(r"\d+\.\d+", tag) for tag in tags)
    build, run = (re.sub(r"-(devel|runtime|base)", "", tag) for tag in tags)
    assert build == run
    assert [stage[0].text for stage in (BUILD, RUN)] == ["${BUILD_IMAGE} AS build", "${RUN_IMAGE}"]


@pytest.mark.parametrize("variant", pairs())
def test_the_extras_are_there(variant):
    for extra in pairs()[variant]["EXTRAS"].split(","):
        assert re.search(rf"^{extra} = \[", PROJECT, re.M)


def test_the_remarks_build_the_variants_of_compose():
    remarks = " ".join(line.strip("# \\") for line in text_of(DOCKERFILE).splitlines() if line[:1] == "#")
    said = dict(one.split("=", 1) for one in re.findall(r"--build-arg (\S+)", remarks))
    assert said == CUDA["services"]["server"]["build"]["args"]


def test_llama_cpp_is_pinned_to_what_the_project_accepts():
    (wanted,) = re.findall(r'"(llama-cpp-python[^"]*)"', PROJECT)
    assert Requirement(wanted).specifier.contains(pairs()["cpu"]["LLAMA_CPP_PYTHON"])


def test_it_runs_as_an_ordinary_user_with_a_fixed_number():
    *_, last = (step.text for step in RUN if step.name == "USER")
    assert re.fullmatch(r"([1-9]\d{3,}):\1", last)
    number = int(last.partition(":")[0])
    security = POD["spec"]["securityContext"]
    assert {security[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {number}


def test_it_can_be_stopped_and_asked_how_it_is():
    said = {step.name: step for step in RUN}
    assert said["ENTRYPOINT"].array == ENTRYPOINT
    assert said["STOPSIGNAL"].text == "SIGTERM"
    assert said["VOLUME"].array == ["/models", "/memories"]
    assert said["EXPOSE"].text == environment_of_image()["LLAMA_ARG_PORT"]
    assert "/health" in said["HEALTHCHECK"].array[-1]


def test_what_is_copied_is_there_and_is_sent():
    for step in BUILD:
        if step.name == "COPY":
            *sources, _ = step.words
            for source in sources:
                path = REPOSITORY / source
                assert path.exists(), source
                inside = [path] if path.is_file() else list(path.rglob("*.py"))
                assert all(
                    image_steps.is_sent(IGNORED, one.relative_to(REPOSITORY).as_posix()) for one in inside
                )


@pytest.mark.parametrize(
    "path",
    [".git/config", ".env", "tools/deploy/.env", "tests/test_deploy.py", "atlas_kit/a/__pycache__/b.pyc"],
)
def test_what_the_image_does_not_need_is_not_sent(path):
    assert not image_steps.is_sent(IGNORED, path)


# --- the image's steps, carried out --------------------------------------------------------------------------

APT = '#!/bin/sh\necho "$@" >> /apt.log\n'  # packages of the distribution are taken to be there


def wheel_of_llama(folder: Path) -> str:
    """Put the llama.cpp of this environment into a wheel, as the builder's compiler would; return its version."""
    found = importlib.metadata.distribution("llama-cpp-python")
    tag = re.search(r"^Tag: (.*)$", found.read_text("WHEEL") or "", re.M)
    assert tag
    with zipfile.ZipFile(folder / f"llama_cpp_python-{found.version}-{tag[1]}.whl", "w") as wheel:
        for file in found.files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                wheel.write(found.locate_file(file), file.as_posix())
    return found.version


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Return the root of the image, in which its steps have been carried out as far as this machine can."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("a copy of the root directory can only be made by root")
    folder = tmp_path_factory.mktemp("image")
    (folder / "wheels").mkdir()
    (folder / "bin").mkdir()
    version = wheel_of_llama(folder / "wheels")
    apt = folder / "bin" / "apt-get"
    apt.write_text(APT)
    apt.chmod(0o755)
    stages = image_steps.roots(folder / "roots", ["build", "run"])
    (folder / "roots").mkdir()
    try:
        roots = next(stages)
    except image_steps.NoRootError as error:
        pytest.skip(f"no copy of the root directory can be made here: {error}")
    for root in roots.values():
        root.outside("cp", str(apt), f"{root.path}/usr/local/sbin/apt-get")
    roots["build"].outside("cp", "-r", str(folder / "wheels"), f"{roots['build'].path}/given")
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    links = " ".join(filter(None, ["/given", pip.get("PIP_FIND_LINKS")]))
    roots["build"].env.update({**pip, "PIP_FIND_LINKS": links})
    index = roots["build"].run("python3", "-m", "pip", "download", "-q", "--no-deps", "-d", "/asked", "idna")
    if index.returncode:
        pytest.skip("the image is made of packages, and no package index can be reached")
    builder = image_steps.Builder(roots, REPOSITORY, IGNORED, {"LLAMA_CPP_PYTHON": version})
    builder.stage(roots["build"], BUILD)
    builder.stage(roots["run"], RUN)
    yield roots["run"]
    stages.close()


def lock_down(root: image_steps.Root, models: Path) -> None:
    """Mount what the container would have: models, memories, room for temporary files, and the rest read-only."""
    root.outside("mount", "--bind", str(models), f"{root.path}/models")
    root.outside("mount", "-t", "tmpfs", "-o", "mode=1777", "none", f"{root.path}/tmp")
    owner = root.outside("stat", "-c", "%u:%g %a", f"{root.path}/memories").strip()
    assert owner == f"{root.user} 755"
    root.outside(
        "mount", "-t", "tmpfs", "-o", "uid=10001,gid=10001,mode=755", "none", f"{root.path}/memories"
    )
    root.outside("mount", "-o", "remount,ro", str(root.path))


class Container:
    """The image's program as its user, with the file system of the container."""

    def __init__(self, root: image_steps.Root, *arguments: str) -> None:
        self.root, self.port = root, free_port()
        root.env["LLAMA_ARG_PORT"] = str(self.port)
        words = root.command([*ENTRYPOINT, *arguments], root.user)
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def is_healthy(self) -> bool:
        (check,) = (step for step in RUN if step.name == "HEALTHCHECK")
        return self.root.run(*check.array, user=self.root.user).returncode == 0

    def wait(self) -> None:
        for _ in range(1500):
            if self.is_healthy():
                return
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.2)
        raise AssertionError("it does not become healthy")

    def complete(self, prompt: str) -> Any:
        data = json.dumps({"prompt": prompt, "max_tokens": 4}).encode()
        headers = {"content-type": "application/json", "authorization": "Bearer secret"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/completions", data, headers)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    def stop(self) -> str:
        self.process.terminate()
        said = self.process.communicate(timeout=120)[1]
        assert self.process.returncode == 0, said
        return said


@pytest.mark.slow
@pytest.mark.model
def test_the_image_serves_saves_and_remembers(image, samples):
    """As in compose.yaml: an ordinary user, a root that may only be read, and a volume that stays."""
    lock_down(image, (samples / "models").resolve())
    assert image.run("id", "-u", user=image.user).stdout == "10001\n"
    assert image.run("touch", "/x", user=image.user).returncode != 0
    image.env |= {"LLAMA_ARG_MODEL": "/models/tiny-python.gguf", "LLAMA_API_KEY": "secret"}
    arguments = COMPOSE["services"]["server"]["command"]
    first = Container(image, *arguments)
    try:
        assert not first.is_healthy()
        first.wait()
        seen = first.complete("def mean(data):\n    return sum(data) / len(data)\n" * 20)["atlas"][
            "tokens_seen"
        ]
        assert seen > 100
        assert '"message": "memory saved' in first.stop()
        kept = image.outside("stat", "-c", "%u", f"{image.path}/memories/tiny-python_memory.atlas")
        assert kept == "10001\n"
        again = Container(image, *arguments)
        again.wait()
        assert again.complete("def")["atlas"]["tokens_seen"] >= seen
        again.stop()
    finally:
        for one in (first, locals().get("again")):
            if one is not None:
                one.process.kill()


# --- compose ------------------------------------------------------------------------------------------------


def test_compose_builds_the_dockerfile():
    build = COMPOSE["services"]["server"]["build"]
    assert (DEPLOY / build["context"]).resolve() == REPOSITORY
    assert REPOSITORY / build["dockerfile"] == DOCKERFILE
    assert set(CUDA["services"]["server"]["build"]["args"]) <= set(image_steps.defaults_of(STEPS))


def test_compose_gives_the_container_no_more_than_it_needs():
    server = COMPOSE["services"]["server"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    targets = {mount["target"]: mount for mount in server["volumes"]}
    assert set(targets) == set(next(step for step in RUN if step.name == "VOLUME").array)
    assert targets["/models"]["read_only"] is True
    assert targets["/memories"]["source"] in COMPOSE["volumes"]
    assert server["ports"] == ["127.0.0.1:8080:8080"]


def test_compose_asks_for_the_health_as_the_image_does():
    server = COMPOSE["services"]["server"]["healthcheck"]
    (check,) = (step for step in RUN if step.name == "HEALTHCHECK")
    options = dict(re.findall(r"--(\S+)=(\S+)", check.text))
    for name, value in options.items():
        assert str(server[name.replace("-", "_")]) == value
    plain = check.array[-1].replace("import os, ", "import ").replace("f'", "'")
    assert server["test"][:-1] == ["CMD", *check.array[:-1]]
    assert server["test"][-1] == plain.replace('{os.environ["LLAMA_ARG_PORT"]}', "8080")


# --- Kubernetes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.30", ""], ids=["1.30", "newest"])
def test_kubernetes_knows_all_of_it(version):
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    assert len(resources()) == 4
    for one in [*resources(), yaml.safe_load(text_of(FILL))]:
        validator.validate(one, version or validator.latest_version(), strict=True)


def test_kubernetes_finds_what_is_named():
    labels = POD["metadata"]["labels"]
    spec = resource("StatefulSet")["spec"]
    assert spec["selector"]["matchLabels"] == labels
    services = [one for one in resources() if one["kind"] == "Service"]
    assert all(one["spec"]["selector"] == labels for one in services)
    assert resource("Service", spec["serviceName"])["spec"]["clusterIP"] == "None"
    ports = {one["name"] for one in CONTAINER["ports"]}
    asked = [one["targetPort"] for service in services for one in service["spec"]["ports"]]
    asked += [CONTAINER[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness")]
    assert set(asked) == ports
    claims = [one["metadata"]["name"] for one in spec["volumeClaimTemplates"]]
    volumes = {one["name"]: one for one in POD["spec"]["volumes"]}
    assert {one["name"] for one in CONTAINER["volumeMounts"]} == {*claims, *volumes}
    assert resource("PersistentVolumeClaim", volumes["models"]["persistentVolumeClaim"]["claimName"])


def test_the_pod_that_takes_the_model_is_the_servers_equal():
    pod = yaml.safe_load(text_of(FILL))["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"] == CONTAINER["securityContext"]
    assert pod["volumes"] == [one for one in POD["spec"]["volumes"] if one["name"] == "models"]
    assert pod["securityContext"]["fsGroup"] == POD["spec"]["securityContext"]["fsGroup"]
    assert container["image"] == pairs()["cpu"]["RUN_IMAGE"]


def test_kubernetes_asks_the_right_endpoints():
    paths = {
        name: CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    from atlas_kit.server.asgi import OPEN

    assert set(paths.values()) <= OPEN  # a probe has no key


def test_kubernetes_gives_the_container_no_more_than_it_needs():
    security = CONTAINER["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert {"requests", "limits"} == set(CONTAINER["resources"])


# --- systemd ------------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path):
    """Return the unit in a folder of its own, with a program that is there in the server's place."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    (line,) = unit_values("ExecStart")
    path = tmp_path / UNIT.name
    path.write_text(text_of(UNIT).replace(line.split()[0], shutil.which("true") or "/bin/true"))
    return path


def test_systemd_understands_the_unit(unit):
    words = ["systemd-analyze", "verify", "--man=no", unit]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    about_it = [line for line in ran.stderr.splitlines() if unit.name in line]
    assert (ran.returncode, about_it) == (0, [])


def test_systemd_finds_the_unit_well_protected(unit):
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if "unrecognized option" in ran.stderr:
        pytest.skip("systemd-analyze is too old here")
    assert ran.returncode == 0, ran.stdout


def test_systemd_saves_where_the_server_listens_for_it():
    assert unit_values("ExecReload") == ["/bin/kill -USR1 $MAINPID"]
    assert "signal.SIGUSR1" in text_of(REPOSITORY / "atlas_kit" / "server" / "run.py")
    assert unit_values("EnvironmentFile") == ["/etc/atlas-server/environment"]


# --- the page -----------------------------------------------------------------------------------------------


def page_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(PAGE), re.M | re.S)


def test_files_that_the_page_names_are_there():
    named = re.findall(r"(?:tools|docs)/[\w./-]+[\w/]", "".join(page_blocks("sh")))
    assert len(named) > 8
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_the_page_runs_the_image_as_it_is():
    (line,) = (one for one in "".join(page_blocks("sh")).splitlines() if one.startswith("docker run"))
    before, _, after = line.partition(" atlas-kit:cpu ")
    context = serve_command.make_context("serve", shlex.split(after))
    config = ServerConfig.from_sources({k: v for k, v in context.params.items() if v not in (None, ())})
    (wait,) = re.findall(r"--stop-timeout (\d+)", before)
    assert int(wait) > config.drain_seconds + END_SECONDS + SAVE_SECONDS
    mounted = re.findall(r"-v [^:]+:([^: ]+)", before)
    assert mounted == next(step for step in RUN if step.name == "VOLUME").array


def test_the_page_says_the_times_that_there_are():
    words = [f"{number:g}" for number in (ServerConfig().drain_seconds, END_SECONDS, SAVE_SECONDS)]
    (sentence,) = re.findall(r"On SIGTERM, (.*?) Whoever", text_of(PAGE), re.S)
    assert re.findall(r"\d+", sentence) == words


def test_variables_on_the_page_are_those_of_the_server():
    known = {name for row in table() for name in row.variables}
    for block in page_blocks("ini"):
        names = {line.partition("=")[0] for line in block.splitlines()}
        asked = set(re.findall(r"\$\{(\w+)", text_of(DEPLOY / "compose.yaml")))
        assert names <= known or names == asked


def test_the_proxy_on_the_page_finds_the_replicas():
    (block,) = page_blocks("nginx")
    spec = resource("StatefulSet")
    names = [f"{spec['metadata']['name']}-{i}.{spec['spec']['serviceName']}:8080" for i in range(3)]
    assert re.findall(r"server (\S+);", block) == names


def test_prometheus_asks_where_the_server_answers():
    (block,) = page_blocks("yaml")
    (job,) = yaml.safe_load(block)["scrape_configs"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert job["authorization"] == {"credentials": "a-long-secret"}
