"""What the server's extension gives to whom: a user's files below the root, to that user, for reading."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from tests.jupyter.conftest import Unpacked
from tests.jupyter.labdriver import Lab, running_lab
from tests.waiting import LONG

Reply = tuple[int, dict[str, str], bytes]
MODEL = "sample_data/gguf/tiny.gguf"
SECRET = "sample_data/atlas/secret.atlas"
SUMMARY = json.dumps({"op": "summary"})


def fetch(lab: Lab, target: str, *, token: str | None = None, method: str = "GET", cookie: str = "") -> Reply:
    """Send a request as it is written: no client between that would tidy up its path."""
    place = urlsplit(lab.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=LONG)
    headers = {"Authorization": f"token {token}"} if token else {}
    if cookie:
        headers["Cookie"] = cookie
    connection.request(method, place.path + target, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def explore(lab: Lab, path: str, **query: str) -> Reply:
    """Ask about a file; ``path`` goes into the address as it is."""
    return fetch(lab, f"atlas-kit/explore/{path}?{urlencode(query)}", token=lab.token)


def reply_of(body: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<I", body)
    return dict(json.loads(body[4 : 4 + length]))


@pytest.fixture(scope="module")
def outside(lab_server: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model outside of the root, to which links in the root lead."""
    path = tmp_path_factory.mktemp("outside") / "secret.gguf"
    shutil.copy(lab_server.root / MODEL, path)
    (lab_server.root / "link.gguf").symlink_to(path)
    (lab_server.root / "linked").symlink_to(path.parent)
    (lab_server.root / "loop.gguf").symlink_to("loop.gguf")
    return path


def test_a_file_below_the_root_is_explored(lab_server: Lab):
    status, headers, body = explore(lab_server, MODEL, q=SUMMARY)
    assert status == 200
    assert reply_of(body)["kind"] == "gguf"
    assert headers["content-type"] == "application/octet-stream"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]


def test_an_address_shows_its_own_file_and_no_backup_of_it(lab_server: Lab):
    shutil.copy(lab_server.root / MODEL, lab_server.root / f"{MODEL}.bak")
    status, _, body = explore(lab_server, MODEL, q=json.dumps({"op": "open_backup", "name": "tiny.gguf.bak"}))
    assert status == 200
    assert "not a backup that can be shown here" in reply_of(body)["error"]
    assert reply_of(explore(lab_server, MODEL, q=SUMMARY)[2])["name"] == "tiny.gguf"


@pytest.mark.parametrize(
    "target", [f"atlas-kit/explore/{MODEL}?q={{}}", "atlas-kit/static/explorer/explorer.js"]
)
@pytest.mark.parametrize("token", [None, "0" * 32])
def test_strangers_get_nothing(lab_server: Lab, target: str, token: str | None):
    status, headers, body = fetch(lab_server, target, token=token)
    assert status in {302, 403}  # scripts are asked for by pages, and pages are led to the login
    assert "login" in headers.get("location", "login")
    assert b"GGUF" not in body
    assert b"function" not in body


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_nothing_can_be_written(lab_server: Lab, method: str):
    before = (lab_server.root / MODEL).read_bytes()
    status, _, _ = fetch(lab_server, f"atlas-kit/explore/{MODEL}", token=lab_server.token, method=method)
    assert status == 405
    assert (lab_server.root / MODEL).read_bytes() == before


ESCAPES = {
    "parent": "../{outside}",
    "parents": "sample_data/../../../../../../..{outside}",
    "parent inside": "sample_data/../" + MODEL,
    "encoded dots": "%2e%2e/%2e%2e/%2e%2e/%2e%2e{outside}",
    "encoded slashes": "..%2f..%2f..%2f..%2f..{encoded}",
    "encoded twice": "..%252f..%252f..%252f..{encoded}",
    "backslashes": "..%5c..%5c..%5c..{encoded}",
    "absolute": "{outside}",
    "absolute, encoded": "{encoded}",
    "loop of links": "loop.gguf",
    "folder": "sample_data",
    "missing": "sample_data/none.gguf",
    "null byte": MODEL + "%00",
    "null byte inside": "sample_data/gguf%00/tiny.gguf",
    "not UTF-8": "%ff%fe.gguf",
    "surrogate": "%ed%a0%80.gguf",
    "wide dots": quote("․․/․․/etc/passwd"),
    "device": "dev/null",
    "very long": "a" * 5000,
    "very deep": "a/" * 2000 + "b",
}


@pytest.mark.parametrize("path", ESCAPES.values(), ids=ESCAPES)
def test_nothing_outside_the_root_is_shown(lab_server: Lab, outside: Path, path: str):
    path = path.format(outside=outside, encoded=quote(str(outside), safe=""))
    status, _, body = explore(lab_server, path, q=SUMMARY)
    assert status in {400, 404}
    assert b"tensor" not in body


@pytest.mark.parametrize("name", ["link.gguf", "linked/secret.gguf"])
def test_a_link_to_a_model_is_followed_as_the_lab_follows_it(lab_server: Lab, outside: Path, name: str):
    assert fetch(lab_server, f"api/contents/{name}", token=lab_server.token)[0] == 200
    status, _, body = explore(lab_server, name, q=SUMMARY)
    assert status == 200
    assert reply_of(body)["kind"] == "gguf"
    assert reply_of(body)["name"] == name.rpartition("/")[2]  # not what the cache calls it


def test_a_link_to_nothing_says_so(lab_server: Lab):
    (lab_server.root / "gone.gguf").symlink_to("nothing.gguf")
    status, _, body = explore(lab_server, "gone.gguf", q=SUMMARY)
    assert status == 404
    assert json.loads(body)["message"] == "This link leads to a file that is not there."


@pytest.mark.parametrize("name", [".hidden.gguf", ".folder/model.gguf"])
def test_hidden_files_stay_hidden(lab_server: Lab, name: str):
    hidden = lab_server.root / ".folder" / "model.gguf"
    hidden.parent.mkdir(exist_ok=True)
    shutil.copy(lab_server.root / MODEL, hidden)
    shutil.copy(lab_server.root / MODEL, lab_server.root / ".hidden.gguf")
    assert explore(lab_server, name, q=SUMMARY)[0] == 404
    link = lab_server.root / "shown.gguf"
    link.unlink(missing_ok=True)
    link.symlink_to(hidden)  # whoever made it wants it to be seen
    assert explore(lab_server, link.name, q=SUMMARY)[0] == 200


@pytest.mark.parametrize(
    "name", ["ünïcödé 記憶.gguf", "a%2Fb.gguf", "semi;colon&=?#.gguf", "new\nline.gguf", "‮x.gguf"]
)
def test_odd_names_are_found(lab_server: Lab, name: str):
    shutil.copy(lab_server.root / MODEL, lab_server.root / name)
    status, _, body = explore(lab_server, quote(name), q=SUMMARY)
    assert status == 200
    assert reply_of(body)["problem"] is None


QUESTIONS = {
    "not JSON": "{",
    "a list": "[]",
    "a number": "1",
    "deep": "[" * 4000,
    "long": json.dumps({"filter": "x" * 9000}),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_bad_questions_are_refused_in_a_sentence(lab_server: Lab, question: str):
    status, _, body = explore(lab_server, MODEL, q=question)
    assert status in {400, 414}
    assert "question" in json.loads(body)["message"]


@pytest.mark.parametrize(
    "name",
    [
        "conftest.py",
        "..%2fhandlers.py",
        "../handlers.py",
        "explorer/../viewer.js",
        "explorer%2f..%2fviewer.js",
        "viewer.js%00",
        "none.js",
        "explorer/none.js",
        "explorer",
    ],
)
def test_only_scripts_and_styles_are_static(lab_server: Lab, name: str):
    assert fetch(lab_server, f"atlas-kit/static/{name}", token=lab_server.token)[0] == 404


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("explorer/explorer.js", "text/javascript"),
        ("explorer/explorer.css", "text/css"),
        ("viewer.js", "text/javascript"),
    ],
)
def test_scripts_and_styles_come_with_their_type(lab_server: Lab, name: str, kind: str):
    status, headers, body = fetch(lab_server, f"atlas-kit/static/{name}", token=lab_server.token)
    assert status == 200
    assert headers["content-type"].startswith(kind)
    assert headers["x-content-type-options"] == "nosniff"
    assert body


def test_an_unreadable_file_is_a_sentence_not_a_failure(lab_server: Lab):
    (lab_server.root / "empty.gguf").touch()
    os.mkfifo(lab_server.root / "pipe.gguf")  # opening it would wait for ever
    status, _, body = explore(lab_server, "empty.gguf", q=SUMMARY)
    assert status == 200
    assert "empty" in reply_of(body)["problem"]["error"]
    assert explore(lab_server, "pipe.gguf", q=SUMMARY)[0] == 404


@pytest.fixture(scope="module")
def prefixed(wheel: Unpacked, tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Iterator[Lab]:
    """Return a bare Jupyter server below a prefix, as a hub runs it, whose root is reached by a link."""
    folder = tmp_path_factory.mktemp("prefixed")
    shutil.copytree(sample_data / "gguf", folder / "real")
    (folder / "root").symlink_to("real")
    with running_lab(
        folder / "root", app="server", base_url="/user/ann/", environment=wheel.environment
    ) as lab:
        yield lab


@pytest.mark.slow
def test_a_hub_has_the_extension_below_its_prefix(prefixed: Lab):
    assert explore(prefixed, "tiny.gguf", q=SUMMARY)[0] == 200


# --- encrypted files --------------------------------------------------------------------------------------


def unlock(lab: Lab, view: str, **headers: str) -> Reply:
    place = urlsplit(lab.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=LONG)
    passphrase = (lab.root / "sample_data" / "text" / "passphrase.txt").read_text(encoding="utf-8").strip()
    body = json.dumps({"op": "unlock", "passphrase": passphrase})
    connection.request("POST", f"{place.path}atlas-kit/explore/{SECRET}?view={view}", body, headers)
    answer = connection.getresponse()
    reply = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return reply


def test_only_the_view_that_has_the_passphrase_is_unlocked(lab_server: Lab):
    status, _, body = unlock(lab_server, "mine", Authorization=f"token {lab_server.token}")
    assert status == 200
    assert reply_of(body)["locked"] is False
    assert reply_of(explore(lab_server, SECRET, q=SUMMARY, view="mine")[2])["locked"] is False
    assert reply_of(explore(lab_server, SECRET, q=SUMMARY, view="other")[2])["locked"] is True


def test_a_passphrase_is_never_part_of_an_address(lab_server: Lab):
    question = json.dumps({"op": "unlock", "passphrase": "correct horse"})
    assert explore(lab_server, SECRET, q=question)[0] == 400


def test_strangers_unlock_nothing(lab_server: Lab):
    assert unlock(lab_server, "mine")[0] == 403
