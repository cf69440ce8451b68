"""What clients of a server do, one after the other and with pauses: fifty of them are the traffic of the test.

Each has a word of its own in everything that is said (``checks.CANARY``), one of two API keys, and a session whose name
somebody else has, too, under the other key.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

from tools.soak.checks import new_canary
from tools.soak.process import KEYS, Server
from tools.soak.traffic import Ask, Reply, Talk, Traffic, request_bytes, send

#: A conversation that is longer than this is begun anew, in characters: the model has 512 tokens of context, so that a
#: part of it has left the context by then.
LONGEST = 2400
#: A grammar is made of it.
SCHEMA = {"type": "object", "properties": {"name": {"enum": ["a", "b"]}}, "required": ["name"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
#: What changes the memory that all keys share, and there is no such file.
ALL_SHARE = {"memory_file": "of-nobody"}
#: Requests that are wrong, and what they are told.
WRONG: tuple[tuple[str, Any, int], ...] = (
    ("/v1/completions", {"prompt": None, "max_tokens": "many"}, 400),
    ("/v1/completions", {"prompt": "a", "temperature": -5}, 400),
    ("/v1/completions", {"prompt": "a", "atlas": {"session_id": "../../etc"}, "n": 0}, 400),
    ("/v1/chat/completions", {"messages": []}, 400),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "?"}},
        400,
    ),
    ("/v1/responses", {"input": "a", "previous_response_id": "resp_of_nobody"}, 400),
    ("/v1/messages", {"messages": "a"}, 400),
    ("/completion", {"prompt": {"a": 1}}, 400),
    ("/v1/atlas/memory/load", {"memory_file": "../shared"}, 400),
    ("/v1/atlas/memory/load", ALL_SHARE, 404),
    ("/v1/atlas/memory/load", {"session_id": "mine", "memory_file": "of-nobody"}, 404),
    ("/v1/atlas/config", {"learning_rate": 1000}, 400),
    ("/v1/nothing", {}, 404),
)


class User:
    """A client.

    Parameters
    ----------
    number
        Which one: the key and the session follow from it.
    traffic, server
        Where requests are noted, and whom they are sent to.
    lines
        What texts are made of.
    think
        Seconds between two requests, on average.
    """

    def __init__(
        self, number: int, traffic: Traffic, server: Server, lines: list[str], think: float, seed: int
    ) -> None:
        self._chance = random.Random(seed * 1000 + number)
        self._traffic, self._server, self._lines, self._think = traffic, server, lines, think
        self.key = KEYS[number % len(KEYS)]
        self.session = f"session-{number // len(KEYS)}"
        self.name = f"user {number}"
        self.canary = new_canary(self._chance)
        traffic.owners[self.canary] = self.name
        self._text = ""
        self._messages: list[dict[str, str]] = []
        self._response: tuple[int, str] | None = None  # the server's life, and an id of it
        self._seen: tuple[int, int] | None = None  # the server's life, and tokens that the memory had seen

    async def live(self) -> None:
        """Ask one thing after the other until the test is over."""
        chance, weights = self._chance, [weight for weight, _ in DEEDS]
        await asyncio.sleep(chance.uniform(0, self._think))
        while not self._traffic.over:
            deed = chance.choices(DEEDS, weights)[0][1]
            await deed(self)
            await asyncio.sleep(chance.expovariate(1 / self._think))

    # --- words -----------------------------------------------------------------------------------------------

    def words(self, count: int = 3) -> str:
        """Return a text with one's own word in it."""
        said = "".join(self._chance.choices(self._lines, k=count))
        return f'# {self.canary}\nsecret = "{self.canary}"\n{said}secret = "'

    def plain(self) -> str:
        """Return a text without it."""
        return "".join(self._chance.choices(self._lines, k=4))

    @property
    def _streams(self) -> bool:
        return self._chance.random() < 0.5

    async def ask(self, ask: Ask, **options: Any) -> Reply:
        """Send a request."""
        return await send(self._traffic, self._server.port, self.key, ask, {self.canary}, **options)

    def _follow(self, reply: Reply) -> None:
        """See that the session's memory has not lost anything since the last time, if the server was there."""
        found = reply.document.get("atlas") if isinstance(reply.document, dict) else None
        if reply.status != 200 or reply.why or not isinstance(found, dict) or "tokens_seen" not in found:
            return
        seen, life = int(found["tokens_seen"]), self._server.life
        if self._seen is not None and self._seen[0] == life and seen < self._seen[1]:
            self._traffic.wrong("memory", f"{self.session} had seen {self._seen[1]} tokens, and now {seen}")
        self._seen = (life, seen)

    # --- conversations ---------------------------------------------------------------------------------------

    async def complete(self) -> None:
        """Go on with the session's text."""
        if len(self._text) > LONGEST:
            self._text = ""
        self._text += self.words()
        stream = self._streams
        body = {
            "prompt": self._text, "max_tokens": self._chance.randint(1, 40), "stream": stream,
            "temperature": self._chance.choice([0, 0.8]), "atlas": {"session_id": self.session},
        }  # fmt: skip
        if self._chance.random() < 0.2:
            body |= {"logprobs": 2}
        kind = "completion, streamed" if stream else "completion"
        self._follow(await self.ask(Ask(kind, "/v1/completions", body, stream="openai" if stream else None)))

    async def chat(self) -> None:
        """Say something in the session's conversation."""
        if sum(len(one["content"]) for one in self._messages) > LONGEST:
            self._messages = []
        self._messages.append({"role": "user", "content": self.words(2)})
        stream = self._streams
        body: dict[str, Any] = {
            "messages": self._messages, "max_tokens": self._chance.randint(1, 40), "stream": stream,
            "atlas": {"session_id": self.session},
        }  # fmt: skip
        more = self._chance.random()
        if more < 0.1:
            schema = {"name": "s", "schema": SCHEMA}
            body |= {"response_format": {"type": "json_schema", "json_schema": schema}}
        elif more < 0.2:
            body |= {"tools": [TOOL], "tool_choice": "auto"}
        elif more < 0.3:
            body |= {"n": 2, "logprobs": True, "top_logprobs": 2}
        kind = "chat, streamed" if stream else "chat"
        reply = await self.ask(Ask(kind, "/v1/chat/completions", body, stream="openai" if stream else None))
        self._follow(reply)
        if not stream and reply.status == 200:
            said = reply.document["choices"][0]["message"].get("content") or ""
            self._messages.append({"role": "assistant", "content": said})
        else:
            self._messages = self._messages[:-1]

    async def forgetful_chat(self) -> None:
        """Ask without a memory."""
        body = {
            "messages": [{"role": "user", "content": self.words()}], "max_tokens": 16, "stream": True,
            "atlas": {"enabled": False}, "stream_options": {"include_usage": True},
        }  # fmt: skip
        await self.ask(Ask("chat without a memory", "/v1/chat/completions", body, stream="openai"))

    async def share(self) -> None:
        """Ask with the memory that all share; nobody's own word is in it."""
        body = {"prompt": self.plain(), "max_tokens": 12, "temperature": 0}
        if self._chance.random() < 0.1:
            body["atlas"] = {"save_memory": True}
        await self.ask(Ask("the shared memory", "/v1/completions", body))

    async def respond(self) -> None:
        """Go on from an answer of before."""
        stream = self._streams
        body: dict[str, Any] = {"input": self.words(2), "max_output_tokens": 16, "stream": stream}
        known = self._response
        if known is None or self._chance.random() < 0.1:
            body["atlas"] = {"session_id": self.session}
        else:
            body["previous_response_id"] = known[1]
        life = self._server.life
        lost = known is not None and known[0] != life
        expect = {200, 400} if lost else {200}
        reply = await self.ask(
            Ask("response", "/v1/responses", body, expect=expect, stream="responses" if stream else None)
        )
        self._response = None
        document = reply.document or {}
        found = document.get("response", document)
        if reply.status == 200 and not reply.why and "id" in found and self._chance.random() < 0.8:
            self._response = (life, found["id"])

    async def message(self) -> None:
        """Ask as Anthropic's clients do."""
        stream = self._streams
        body = {
            "model": "m", "max_tokens": 16, "system": "Answer in Python.", "stream": stream,
            "messages": [{"role": "user", "content": self.words(2)}], "atlas": {"session_id": self.session},
        }  # fmt: skip
        await self.ask(Ask("message", "/v1/messages", body, stream="anthropic" if stream else None))

    async def native(self) -> None:
        """Ask as llama-server's clients do."""
        stream = self._streams
        body = {
            "prompt": self.words(), "n_predict": 16, "n_probs": 3, "cache_prompt": True, "stream": stream,
            "atlas": {"enabled": False},
        }  # fmt: skip
        await self.ask(Ask("native completion", "/completion", body, stream="native" if stream else None))

    async def embed(self) -> None:
        """Ask for vectors."""
        body = {"input": [self.words(1), self.words(2)]}
        await self.ask(Ask("embedding", "/v1/embeddings", body))

    async def crowd(self) -> None:
        """Ask three things of one session at once, one of which may be to forget it."""
        self._seen, self._text, self._messages = None, "", []
        chance, end = self._chance, self._chance.random()
        expect = {200, 400, 404} if end < 0.6 else {200}  # whose turn comes when it is forgotten is told

        def body(stream: bool) -> dict[str, Any]:
            return {
                "prompt": self.words(1), "max_tokens": 24, "stream": stream, "atlas": {"session_id": self.session},
            }  # fmt: skip

        async def later() -> None:
            await asyncio.sleep(chance.uniform(0, 1))
            at = f"/v1/atlas/sessions/{self.session}"
            if end < 0.3:
                await self.ask(Ask("forgetting", at, method="DELETE", expect={200, 404}, saves=True))
            elif end < 0.6:
                named = {"session_id": self.session, "memory_file": f"{self.session}-crowd"}
                saved = await self.ask(
                    Ask("saving", "/v1/atlas/memory/save", named, expect={200, 404}, saves=True)
                )
                if saved.status == 200:
                    await self.ask(Ask("loading", "/v1/atlas/memory/load", named))
                    await self.ask(
                        Ask(
                            "removing a memory",
                            "/v1/atlas/memory/delete",
                            named,
                            expect={200, 404},
                            saves=True,
                        )
                    )
            else:
                await self.ask(Ask("reset", f"{at}/reset", {"mode": "hard"}, expect={200, 404}))

        kind, path = "one session at once", "/v1/completions"
        await asyncio.gather(
            self.ask(Ask(kind, path, body(True), expect=expect, stream="openai")),
            self.ask(Ask(kind, path, body(False), expect=expect)),
            later(),
        )

    # --- memories --------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Look at sessions, memories and the server."""
        chosen = self._chance.randrange(9)
        path, expect = (
            ("/v1/atlas/sessions", {200}), (f"/v1/atlas/sessions/{self.session}", {200, 404}),
            (f"/v1/atlas/memory?session_id={self.session}", {200, 404}),
            (f"/v1/atlas/memory/info?session_id={self.session}", {200, 400, 404}),
            ("/v1/models", {200}), ("/slots", {200}), ("/metrics", {200}), ("/v1/atlas/status", {200}),
            ("/v1/atlas/metrics", {200}),
        )[chosen]  # fmt: skip
        await self.ask(Ask("looking", path, method="GET", expect=expect))

    async def fork(self) -> None:
        """Begin a second session that knows what the first does, ask it, and forget it."""
        other = f"{self.session}-fork"
        at = f"/v1/atlas/sessions/{self.session}"
        made = await self.ask(Ask("fork", f"{at}/fork", {"session_id": other}, expect={200, 404, 409}))
        if made.status in (200, 409):
            body = {
                "prompt": self.words(1), "max_tokens": 8, "temperature": 0, "atlas": {"session_id": other},
            }  # fmt: skip
            await self.ask(Ask("completion of a fork", "/v1/completions", body))
        await self.ask(
            Ask("forgetting", f"/v1/atlas/sessions/{other}", method="DELETE", expect={200, 404}, saves=True)
        )

    async def save(self) -> None:
        """Save the session, under a name or where it is kept; perhaps go on with what was saved, and remove it."""
        if self._chance.random() < 0.5:
            path = f"/v1/atlas/sessions/{self.session}/save"
            await self.ask(Ask("saving", path, {}, expect={200, 404}, saves=True))
            return
        named = {"session_id": self.session, "memory_file": self.session}
        saved = await self.ask(Ask("saving", "/v1/atlas/memory/save", named, expect={200, 404}, saves=True))
        if saved.status != 200:
            return
        self._seen = None
        await self.ask(Ask("loading", "/v1/atlas/memory/load", named))
        await self.ask(Ask("looking", "/v1/atlas/memory/list", {}))
        delete = Ask("removing a memory", "/v1/atlas/memory/delete", named, expect={200, 404}, saves=True)
        await self.ask(delete)

    async def reset(self) -> None:
        """Forget what was learned."""
        self._seen = None
        body = {"mode": self._chance.choice(["soft", "hard"])}
        at = f"/v1/atlas/sessions/{self.session}/reset"
        await self.ask(Ask("reset", at, body, expect={200, 404}))

    async def forget(self) -> None:
        """Forget the session."""
        self._seen, self._text, self._messages = None, "", []
        at = f"/v1/atlas/sessions/{self.session}"
        await self.ask(Ask("forgetting", at, method="DELETE", expect={200, 404}, saves=True))

    # --- what clients should not do --------------------------------------------------------------------------

    async def err(self) -> None:
        """Ask for what cannot be."""
        path, body, status = self._chance.choice(WRONG)
        if body == ALL_SHARE and self.key != KEYS[0]:
            status = 403  # The first key is the administrator's.
        if isinstance(body.get("prompt"), str):
            body = {**body, "prompt": self.words(1)}
        await self.ask(Ask("wrong request", path, body, expect={status}))

    async def hang_up(self) -> None:
        """Ask for a long stream, and go away in the middle of it."""
        body = {
            "prompt": self.words(), "max_tokens": 200, "stream": True, "ignore_eos": True,
            "atlas": {"session_id": self.session},
        }  # fmt: skip
        await self._leave(request_bytes(self._server.port, self.key, Ask("", "/v1/completions", body)), 1.5)
        self._note("hanging up in a stream")

    async def half(self) -> None:
        """Send half of a request, and wait."""
        whole = request_bytes(
            self._server.port, self.key, Ask("", "/v1/completions", {"prompt": self.words()})
        )
        end = whole.index(b"\r\n\r\n")
        await self._leave(whole[: self._chance.choice([10, end - 3, end + 4, len(whole) - 20])], 8.0)
        self._note("half a request")

    async def _leave(self, sending: bytes, most: float) -> None:
        talk = Talk(sending)
        self._traffic.connected += 1
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: talk, "127.0.0.1", self._server.port)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(talk.done, self._chance.uniform(0.1, most))
        self._traffic.connected -= 1
        talk.leave()

    def _note(self, kind: str) -> None:
        self._traffic.of(kind).statuses["left"] += 1

    async def read_slowly(self) -> None:
        """Take a stream's parts more slowly than they come."""
        body = {"prompt": self.words(1), "max_tokens": 80, "stream": True, "logprobs": 5, "ignore_eos": True}
        body["atlas"] = {"session_id": self.session}
        ask = Ask("completion, read slowly", "/v1/completions", body, stream="openai")
        await self.ask(ask, pause=0.3)


Deed = Callable[[User], Awaitable[None]]
#: What users do, and how often.
DEEDS: tuple[tuple[float, Deed], ...] = (
    (6, User.complete), (6, User.chat), (3, User.forgetful_chat), (3, User.share), (4, User.respond),
    (3, User.message), (3, User.native), (2, User.embed), (3, User.look), (0.7, User.fork), (0.8, User.save),
    (0.4, User.reset), (0.3, User.forget), (0.8, User.crowd), (1.5, User.err), (1.5, User.hang_up), (0.5, User.half),
    (0.4, User.read_slowly),
)  # fmt: skip
