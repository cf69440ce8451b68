"""A Dockerfile's steps without a container: read, and carried out in copies of this machine's root directory.

Each stage gets a root of its own, in which what it writes stays (an overlay in memory, in a mount namespace that ends
with the fixture): commands run there by ``chroot``, with the very paths, users and variables of the image. What the
base image would be is this machine, and packages of its distribution are taken to be there. Knows no server.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from string import Template

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Step:
    """One instruction: its name in capitals, and what stands behind it, on one line."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """What stands behind it, word by word."""
        return shlex.split(self.text)

    @property
    def array(self) -> list[str]:
        """What stands behind it, or behind its options, as a JSON array."""
        return list(json.loads(self.text[self.text.index("[") :]))


def read_steps(text: str) -> list[Step]:
    """Return the instructions of a Dockerfile."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines()]


def stages_of(steps: Sequence[Step]) -> list[list[Step]]:
    """Return the instructions of each stage, which begin with FROM; those before the first are left out."""
    found: list[list[Step]] = []
    for step in steps:
        if step.name == "FROM":
            found.append([])
        if found:
            found[-1].append(step)
    return found


def defaults_of(steps: Sequence[Step]) -> dict[str, str]:
    """Return what all ARGs are where nobody says."""
    return {step.text.partition("=")[0]: step.text.partition("=")[2] for step in steps if step.name == "ARG"}


def is_sent(ignored: str, path: str) -> bool:
    """Whether a file goes to the builder: a .dockerignore whose last pattern that fits decides."""
    sent = True
    for line in ignored.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        back, pattern = pattern.startswith("!"), pattern.removeprefix("!").strip("/")
        names = [path, *map(str, PurePosixPath(path).parents)]
        patterns = [pattern, pattern.removeprefix("**/")]
        tails = [name.rsplit("/", 1)[-1] for name in names] if pattern.startswith("**/") else []
        if any(fnmatch.fnmatchcase(name, one) for name in [*names, *tails] for one in patterns):
            sent = back
    return sent


class NoRootError(Exception):
    """This machine has no copies of its root directory to give."""


@dataclass
class Root:
    """The root directory of a stage, and what holds for its next step."""

    path: Path
    holder: int
    env: dict[str, str] = field(default_factory=lambda: {"PATH": SYSTEM_PATH, "HOME": "/root"})
    args: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = ""

    def command(self, words: Sequence[str], user: str = "") -> list[str]:
        """Return the words of this machine that run words of the image there; the process keeps its number."""
        into = ["nsenter", "--target", str(self.holder), "--mount", "chroot"]
        if user:
            into += [f"--userspec={user}", "--groups="]
        variables = [f"{name}={value}" for name, value in {**self.args, **self.env}.items()]
        return [*into, str(self.path), "env", "-i", *variables, *words]

    def run(self, *words: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run words there."""
        return subprocess.run(
            self.command(words, user), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )

    def outside(self, *words: str) -> str:
        """Run words of this machine with its view of the roots."""
        ran = subprocess.run(
            ["nsenter", "--target", str(self.holder), "--mount", *words],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"$ {shlex.join(words)}\n{ran.stdout}{ran.stderr}"
        return ran.stdout


_ROOTS = """
set -e
mount -t tmpfs -o size=4g,mode=755 none "$1"
shift_to=$1; shift
for name; do
  mkdir "$shift_to/$name" "$shift_to/$name.new" "$shift_to/$name.work"
  mount -t overlay -o "lowerdir=/,upperdir=$shift_to/$name.new,workdir=$shift_to/$name.work" none "$shift_to/$name"
  mount --rbind /proc "$shift_to/$name/proc"
  mount --rbind /dev "$shift_to/$name/dev"
done
echo ready
exec sleep infinity
"""


def roots(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Root]]:
    """Yield a root for each name; they go with the end of the iterator.

    Raises
    ------
    NoRootError
        Nothing of that kind can be mounted here.
    """
    missing = [one for one in ("unshare", "nsenter", "chroot") if shutil.which(one) is None]
    if missing:
        raise NoRootError(f"there is no {missing[0]}")
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        _ROOTS,
        "sh",
        str(folder),
        *names,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                raise NoRootError(holder.communicate()[1])
            yield {name: Root(folder / name, holder.pid) for name in names}
        finally:
            holder.kill()


class Builder:
    """Carries out the stages of a Dockerfile in roots, one after the other.

    Parameters
    ----------
    roots
        One for each stage; the last has no name in the Dockerfile.
    context, ignored
        The folder that would go to the builder, and what of it would not.
    args
        Build arguments that are given.
    """

    def __init__(self, roots: dict[str, Root], context: Path, ignored: str, args: dict[str, str]) -> None:
        self.roots, self.context, self.ignored, self.given = roots, context, ignored, args
        self.done: list[str] = []

    def stage(self, root: Root, steps: Sequence[Step]) -> None:
        """Carry out a stage."""
        for step in steps:
            getattr(self, f"_{step.name.lower()}", lambda *_: None)(root, step)
            self.done.append(step.name)

    def _arg(self, root: Root, step: Step) -> None:
        name, _, default = step.text.partition("=")
        root.args[name] = self.given.get(name, default)

    def _env(self, root: Root, step: Step) -> None:
        for word in step.words:
            name, _, value = word.partition("=")
            root.env[name] = Template(value).substitute(root.env)

    def _workdir(self, root: Root, step: Step) -> None:
        root.folder = step.text
        (root.outside("mkdir", "-p", f"{root.path}{step.text}"))

    def _user(self, root: Root, step: Step) -> None:
        root.user = step.text

    def _run(self, root: Root, step: Step) -> None:
        ran = root.run("sh", "-c", f"cd {root.folder} && {step.text}")
        assert ran.returncode == 0, f"RUN {step.text}\n{ran.stdout[-3000:]}{ran.stderr[-3000:]}"

    def _copy(self, root: Root, step: Step) -> None:
        words = step.words
        source = self.context
        if words[0].startswith("--from="):
            source = self.roots[words.pop(0).removeprefix("--from=")].path
        *names, target = words
        goal = PurePosixPath(root.folder, target)
        for name in names:
            found = source / name.strip("/")
            into = goal / found.name if target.endswith("/") and not name.endswith("/") else goal
            if source == self.context and found.is_dir():
                self._send(root, found, into)
                continue
            root.outside("mkdir", "-p", f"{root.path}{into.parent}")
            root.outside("cp", "-a", str(found), f"{root.path}{into}")

    def _send(self, root: Root, folder: Path, into: PurePosixPath) -> None:
        sent = [
            path.relative_to(folder).as_posix()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and is_sent(self.ignored, path.relative_to(self.context).as_posix())
        ]
        root.outside("mkdir", "-p", f"{root.path}{into}")
        words = ["tar", "-C", str(folder), "-cf", "-", *sent]
        archive = subprocess.run(words, capture_output=True, check=True).stdout
        unpack = [
            "nsenter",
            "--target",
            str(root.holder),
            "--mount",
            "tar",
            "-C",
            f"{root.path}{into}",
            "-xf",
            "-",
        ]
        subprocess.run(unpack, input=archive, check=True)
