"""A widget without Jupyter: a comm that keeps what is sent, and a page that runs the widget's own JavaScript.

``wire`` joins a widget to a list of messages. ``stage`` mounts an anywidget's module in Chromium on a stub of the
model, and carries the messages between the module and the real Python object, as a kernel would.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
import pytest
from playwright.sync_api import Page

from atlas_kit.widgets.explorer import watching
from tests.waiting import until

#: What anywidget gives to `render`, over a plain object.
STUB = """
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const SOON = 200, GIVE_UP = 60_000; // milliseconds: what is put off for longer is no part of a picture
const state = {}, listeners = {}, changed = new Set();
const tell = (name, ...rest) => [...(listeners[name] ?? [])].forEach((listener) => listener(...rest));
const read = (message) => Object.fromEntries(Object.entries(message.state)
    .concat(message.paths.map((path, i) => [path[0], bytes(message.buffers[i])])));
// what the page has put off, and what it asked and was not answered: `window.settled` waits for all of it
const [frame, timer] = [window.requestAnimationFrame.bind(window), window.setTimeout.bind(window)];
const [noFrame, noTimer] = [window.cancelAnimationFrame.bind(window), window.clearTimeout.bind(window)];
const frames = new Set(), timers = new Set();
let underway = 0;
window.requestAnimationFrame = (work) => {
    const id = frame((now) => { frames.delete(id); work(now); });
    frames.add(id);
    return id;
};
window.cancelAnimationFrame = (id) => { frames.delete(id); noFrame(id); };
window.setTimeout = (work, ms = 0, ...rest) => {
    const id = timer(() => { timers.delete(id); work(...rest); }, ms);
    if (ms <= SOON) timers.add(id);
    return id;
};
window.clearTimeout = (id) => { timers.delete(id); noTimer(id); };
const heard = () => [window.sent?.length, window.delivered].join();
window.settled = async () => {
    const late = performance.now() + GIVE_UP;
    for (;;) {
        const before = heard();
        // after the frame, observers of sizes have been told: what they put off is known
        await new Promise((done) => frame(() => timer(done)));
        const left = { underway, frames: frames.size, timers: timers.size };
        if (before === heard() && !Object.values(left).some(Boolean)) return;
        if (performance.now() > late) throw new Error(`the page does not come to rest: ${JSON.stringify(left)}`);
    }
};
const post = async (content) => {
    underway += 1;
    try {
        for (const message of await window.toKernel(content)) window.deliver(message);
    } finally {
        underway -= 1;
    }
};
window.deliver = (message) => {
    window.delivered = (window.delivered ?? 0) + 1;
    if (message.method === "custom") { tell("msg:custom", message.content, message.buffers.map(bytes)); return; }
    const news = Object.entries(read(message));
    for (const [key, value] of news) state[key] = value;
    for (const [key] of news) tell(`change:${key}`);
};
window.model = {
    get: (key) => state[key],
    set: (key, value) => { state[key] = value; changed.add(key); tell(`change:${key}`); },
    save_changes: () => {
        post({ method: "update", state: Object.fromEntries([...changed].map((key) => [key, state[key]])) });
        changed.clear();
    },
    send: (content) => { window.sent = [...(window.sent ?? []), content]; post({ method: "custom", content }); },
    on: (name, listener) => { (listeners[name] ??= []).push(listener); },
    off: (name, listener) => { listeners[name] = (listeners[name] ?? []).filter((other) => other !== listener); },
};
window.listening = () => Object.values(listeners).flat().length;
window.mount = async ([message, source, style, count]) => {
    Object.assign(state, read(message));
    const sheet = document.head.appendChild(document.createElement("style"));
    sheet.textContent = style;
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    const module = (await import(url)).default;
    window.endings = [];
    for (let i = 0; i < count; i++) {
        const el = document.body.appendChild(document.createElement("div"));
        window.endings.push(await module.render({ model: window.model, el }));
    }
};
"""


@dataclass
class Wire:
    """A comm that keeps what goes to the browser."""

    kernel: bool = True
    comm_id: str = "test"
    closed: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)

    def send(self, data: dict[str, Any] | None = None, buffers: list[Any] | None = None, **_: Any) -> None:
        data = json.loads(json.dumps(data or {}))  # what cannot be JSON cannot be sent
        if data.get("method") != "echo_update":  # for other pages; the one that it came from ignores it
            self.sent.append({**data, "buffers": [bytes(buffer) for buffer in buffers or []]})

    def on_msg(self, callback: Callable[..., None]) -> None:
        pass

    def close(self, *_: Any, **__: Any) -> None:
        self.closed = True

    def take(self) -> list[dict[str, Any]]:
        """Return what was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent


def wired(widget: ipywidgets.Widget) -> Wire:
    """Join a widget to a new wire."""
    widget.comm = Wire()
    return widget.comm  # type: ignore[no-any-return]


def receive(widget: ipywidgets.Widget, content: dict[str, Any]) -> None:
    """Give a widget a message as if it came from the browser."""
    widget._handle_msg({"content": {"data": content}, "buffers": []})


def once(condition: Callable[[], Any], action: Callable[[], Any]) -> threading.Thread:
    """Do something in another thread as soon as a condition holds: what this one is about to do."""
    thread = threading.Thread(target=lambda: (until(condition), action()), daemon=True)
    thread.start()
    return thread


class Stage:
    """A page with one anywidget in it, and the widget's Python side."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.widget: Any = None
        self.silent = False  #: whether the kernel lets messages pile up
        self.waiting: list[dict[str, Any]] = []

    def show(self, widget: Any, *, views: int = 1, dark: bool = False) -> Stage:
        """Mount a widget, as often as there are views."""
        self.widget, self.wire = widget, wired(widget)
        self.page.expose_function("toKernel", self._to_kernel)
        colours = "background:#111;color:#e8e8e8" if dark else "background:#fff;color:#111"
        self.page.set_content(f'<!doctype html><body style="{colours};margin:12px"></body>')
        if dark:
            self.page.add_style_tag(
                content=":root{--jp-ui-font-color1:#e8e8e8;--jp-ui-font-color2:#aaa;--jp-layout-color1:#111;"
                "--jp-layout-color2:#333;--jp-border-color2:#555}"
            )
        self.page.add_script_tag(content=f"(() => {{{STUB}}})()")
        state = {"state": widget.get_state()}
        plain, paths, buffers = ipywidgets.widgets.widget._remove_buffers(state["state"])
        keys = {key: value for key, value in plain.items() if not key.startswith(("_", "layout"))}
        first = _json({"state": keys, "buffer_paths": paths, "buffers": buffers})
        self.page.evaluate(
            "(given) => window.mount(given)", [first, str(widget._esm), str(widget._css), views]
        )
        self.settle()
        return self

    def _to_kernel(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        if self.silent:
            self.waiting.append(content)
            return []
        receive(self.widget, {"buffer_paths": [], **content})
        return [_json(message) for message in self.wire.take()]

    def deliver(self) -> int:
        """Carry what Python sent to the page; return how many messages that were."""
        number = self.deliver_at_once()
        self.settle()
        return number

    def deliver_until(self, condition: Callable[[], Any]) -> None:
        """Carry what another thread sends until a condition holds, which waits for nothing itself: who would carry?"""
        until(lambda: self.deliver() >= 0 and condition())

    def deliver_at_once(self) -> int:
        """Carry it, and do not wait for what comes of it: the kernel may be silent."""
        messages = [_json(message) for message in self.wire.take()]
        for message in messages:
            self.page.evaluate("(message) => window.deliver(message)", message)
        return len(messages)

    def wake(self) -> None:
        """Let the kernel read what piled up."""
        self.silent = False
        for content in self.waiting:
            receive(self.widget, {"buffer_paths": [], **content})
        self.waiting.clear()
        self.deliver()

    def settle(self) -> None:
        """Return when the page is at rest: every answer has come, and nothing is left that it has put off.

        That is frames, and timers of at most 0.2 s, such as one that waits for the end of typing.
        """
        self.page.evaluate("window.settled()")

    def pixel(self, x: int, y: int) -> tuple[int, ...]:
        """Return red, green and blue of a pixel of the first canvas, in the canvas' own pixels."""
        found = self.page.evaluate(
            "([x, y]) => [...document.querySelector('canvas').getContext('2d').getImageData(x, y, 1, 1).data]",
            [x, y],
        )
        return tuple(found[:3])


def _json(message: dict[str, Any]) -> dict[str, Any]:
    """Make one message fit for the page: buffers as base64."""
    buffers = [base64.b64encode(bytes(buffer)).decode() for buffer in message.get("buffers", [])]
    return {**message, "paths": message.get("buffer_paths", []), "buffers": buffers}


@pytest.fixture
def stage(page: Page) -> Stage:
    """Return an empty stage in Chromium."""
    return Stage(page)


@pytest.fixture(autouse=True)
def _nobody_glances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have explorers look at their files when a test says so, and not every two seconds."""
    monkeypatch.setattr(watching, "EVERY_SECONDS", 3600.0)


@pytest.fixture(autouse=True)
def _close_widgets() -> Iterator[None]:
    """Close what a test leaves open: ipywidgets keeps every widget until then."""
    yield
    ipywidgets.Widget.close_all()
