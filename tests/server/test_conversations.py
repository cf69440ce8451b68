"""Conversations and where they are: leases, moves, files, and what a text that is sent again costs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import BusyError, ClosedError, ConflictError, FileAccessError, InvalidParamError
from atlas_kit.llama import FakeEngine, Sampling, Scheduler
from atlas_kit.llama.loading import open_engine
from atlas_kit.persistence.session_file import context_bytes
from atlas_kit.server import conversations as module
from atlas_kit.server import session_files
from atlas_kit.server.conversation import Conversation
from atlas_kit.server.conversations import Conversations
from atlas_kit.server.generation import Generating
from atlas_kit.server.jobs import called
from atlas_kit.server.keys import Key
from atlas_kit.server.metrics import Metrics
from atlas_kit.server.outcome import Generation
from atlas_kit.server.session_files import SessionFiles
from atlas_kit.settings.atlas_settings import AtlasSettings

MODEL = Path(__file__).parents[2] / "sample_data" / "models" / "tiny-python.gguf"
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "


class House:
    """Conversations over a fake engine, for tests that look into them."""

    def __init__(self, engine: FakeEngine | None = None, **options: Any) -> None:
        self.engine = engine or FakeEngine(n_ctx=64, n_sequences=2, n_batch=32)
        self.scheduler = Scheduler(self.engine)
        self.all = Conversations(self.engine, self.scheduler, **options)

    async def __aenter__(self) -> House:
        await self.all.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.all.close()
        self.scheduler.close()
        if self.all.files is not None:
            self.all.files.close()

    def named(self, name: str) -> Conversation:
        found = self.all.named_or_new(Key("", name), SMALL)
        found.unread = False  # it was there before whoever asks
        return found

    def generating(self, conversation: Any, text: str | bytes, count: int = 4, **more: Any) -> Generating:
        tokens = list(text.encode() if isinstance(text, str) else text)
        given = {"tokens": tokens, "sampling": Sampling(temperature=0), "max_tokens": count}
        asked = Generation(**{**given, **more})
        choose = conversation if callable(conversation) else lambda: conversation
        return Generating(self.all, choose, asked, Metrics(), remembers=True)

    async def answer(self, conversation: Any, text: str | bytes, count: int = 4, **more: Any) -> Generating:
        run = self.generating(conversation, text, count, **more)
        async for _ in run.tokens():
            pass
        return run

    def state_of(self, conversation: Conversation) -> bytes:
        """Whatever a memory at rest has learned, as bytes."""
        assert conversation.memory is not None
        arrays = conversation.memory.state.groups()
        return b"".join(
            array.tobytes() for group in sorted(arrays) for _, array in sorted(arrays[group].items())
        )


def run(test: Any) -> Any:
    return asyncio.run(test())


async def turns() -> None:
    """Let all that is under way in this loop come as far as it can: a short sleep may end with the loop's next turn."""
    for _ in range(100):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


# --- what is known -------------------------------------------------------------------------------------------


def test_a_text_that_is_sent_again_is_not_read_again(serve: Any) -> None:
    server = serve()
    for cached in (0, 48):
        answer = server.post("/v1/completions", prompt="abcdef" * 8, max_tokens=4)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    assert [len(one["choices"]) for one in server.events("/v1/completions", prompt="a", max_tokens=2)]


def test_a_session_remembers_what_it_has_read(inside: Any) -> None:
    async def test() -> None:
        async with inside(atlas=True) as server:
            body = {"prompt": "xyz" * 20, "max_tokens": 2, "atlas": {"session_id": "anna"}}
            for cached in (0, 60):
                answer = await server.client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == cached

    asyncio.run(test())


def test_what_a_branch_drops_is_not_unlearned_and_said() -> None:
    async def test() -> None:
        async with House() as house:
            anna = house.named("anna")
            first = await house.answer(anna, TEXT)
            assert first.outcome.atlas["not_unlearned_tokens"] == 0
            again = await house.answer(anna, TEXT)
            assert (again.outcome.cached_tokens, again.outcome.read_tokens) == (len(TEXT), 0)
            assert again.outcome.atlas["not_unlearned_tokens"] == 4  # the first answer
            other = await house.answer(anna, TEXT[:40] + "another end")
            assert other.outcome.read_tokens == len("another end")
            assert other.outcome.atlas["not_unlearned_tokens"] == 8 + len(TEXT) - 40
            assert other.outcome.atlas["tokens_seen"] == len(TEXT) + 12 + len("another end") - 1
            back = await house.answer(anna, TEXT)  # the branch is still known, and part of the text again
            assert back.outcome.read_tokens == 0
            assert back.outcome.atlas["not_unlearned_tokens"] == 12 + len("another end")

    run(test)


def test_a_temporary_memory_goes_on_with_its_own_text_alone() -> None:
    async def test() -> None:
        async with House() as house:

            def find(text: str) -> Any:
                return lambda: house.all.temporary("", SMALL, list(text.encode()))

            await house.answer(find(TEXT), TEXT, 0)
            assert (await house.answer(find(TEXT + "more"), TEXT + "more", 0)).outcome.read_tokens == 4
            assert (await house.answer(find(TEXT[:30] + "!"), TEXT[:30] + "!")).outcome.cached_tokens == 0
            assert len(house.all.temporary_ones) == 2

    run(test)


def test_two_requests_at_once_do_not_share_a_temporary_memory() -> None:
    async def test() -> None:
        async with House() as house:

            def find() -> Conversation:
                return house.all.temporary("", SMALL, list(TEXT.encode()))

            await house.answer(find, TEXT, 0)
            runs = await asyncio.gather(*(house.answer(find, TEXT, 4) for _ in range(3)))
            # one goes on, one reads, and one begins with a copy of what that became
            assert sorted(one.outcome.cached_tokens for one in runs) == [0, len(TEXT), len(TEXT)]
            assert len({id(one.conversation.memory) for one in runs if one.conversation is not None}) == 3
            assert {one.outcome.atlas["tokens_seen"] for one in runs} == {len(TEXT) + 3}
            assert all(one.outcome.atlas["not_unlearned_tokens"] == 0 for one in runs)

    run(test)


def test_without_a_memory_nobody_takes_a_longer_conversation_away() -> None:
    async def test() -> None:
        async with House() as house:

            def find(text: str) -> Any:
                return lambda: house.all.temporary("", None, list(text.encode()))

            system, one, two = "you are kind. ", "hello, this is anna. ", "good day, it is ben here. "
            for text in (system + one, system + two, system + one + "more. ", system + two + "more. "):
                await house.answer(find(text), text, 0)
            assert len(house.all.temporary_ones) == 2

    run(test)


PREFIX = "you are a helpful assistant, and you answer in one word. "


@pytest.mark.parametrize("sequences", [1, 2, 8])
def test_a_beginning_that_many_share_is_read_once(sequences: int) -> None:
    """Also when they all come at once: by whoever comes first."""

    async def test() -> None:
        async with House(FakeEngine(n_ctx=128, n_sequences=sequences, n_batch=32)) as house:
            texts = [PREFIX + f"{chr(65 + number)} question" for number in range(8)]

            def find(text: str) -> Any:
                return lambda: house.all.temporary("", None, list(text.encode()))

            runs = await asyncio.gather(*(house.answer(find(text), text, 6) for text in texts))
            outcomes = [one.outcome for one in runs]
            assert [one.cached_tokens for one in outcomes] == [0, *[len(PREFIX)] * 7]
            assert [one.read_tokens for one in outcomes[1:]] == [len("A question")] * 7
            alone = [await first_answer(text) for text in texts]
            assert [[token.id for token in one.tokens] for one in outcomes] == alone
            for text in texts:  # and each of them goes on with its own
                again = await house.answer(find(text), text, 6)
                assert again.outcome.read_tokens == 0
            assert all(one.prefix is None and not one.followers for one in house.all.temporary_ones)

    async def first_answer(text: str) -> list[int]:
        async with House(FakeEngine(n_ctx=128, n_sequences=1, n_batch=32)) as house:
            run = await house.answer(lambda: house.all.temporary("", None, list(text.encode())), text, 6)
            return [token.id for token in run.outcome.tokens]

    run(test)


def test_nobody_waits_for_a_few_tokens_of_a_text_that_is_being_read() -> None:
    """They would be decoded for alone, behind those who came with them; of one that is read they are copied."""

    async def test() -> None:
        engine = FakeEngine(n_ctx=128, n_sequences=8, n_batch=64, n_together=512, n_outputs=64)
        async with House(engine) as house:
            texts = [PREFIX[: module.LEAST_AWAITED - 1] + f"{chr(65 + number)} word" for number in range(8)]

            def find(text: str) -> Any:
                return lambda: house.all.temporary("", None, list(text.encode()))

            runs = await asyncio.gather(*(house.answer(find(text), text, 6) for text in texts))
            assert [one.outcome.cached_tokens for one in runs] == [0] * 8
            later = PREFIX[:10] + "another"
            run = await house.answer(find(later), later, 6)
            assert run.outcome.cached_tokens == 10

    run(test)


@pytest.mark.parametrize("how", ["leaves", "fails", "other key", "hybrid"])
def test_who_follows_somebody_that_does_not_come_far_reads_it_all(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        engine = FakeEngine(n_ctx=128, n_sequences=1, n_batch=8, shiftable=how != "hybrid")
        async with House(engine) as house:

            def find(text: str, namespace: str = "") -> Any:
                return lambda: house.all.temporary(namespace, None, list(text.encode()))

            async with house.all.lease(house.named("somebody")):
                first = house.generating(find(PREFIX + "A"), PREFIX + "A", 3).tokens()
                waiting = asyncio.ensure_future(anext(first))
                await turns()
                namespace = "other" if how == "other key" else ""
                second = asyncio.ensure_future(house.answer(find(PREFIX + "B", namespace), PREFIX + "B", 3))
                await turns()
                if how == "leaves":
                    waiting.cancel()
                    await asyncio.wait({waiting})
                    await first.aclose()
            with monkeypatch.context() as patch:
                if how == "fails":

                    def fail(_: int) -> Any:
                        raise RuntimeError("out of order")

                    patch.setattr(engine, "save_sequence", fail)
                    with pytest.raises(RuntimeError):
                        await second
                    with contextlib.suppress(RuntimeError):
                        await waiting
                else:
                    run = await second
                    assert run.outcome.cached_tokens == 0
                    assert run.outcome.completion_tokens == 3
                    if how != "leaves":
                        await waiting
                        await first.aclose()
            assert all(one.prefix is None and not one.followers for one in house.all.temporary_ones)

    run(test)


def test_temporary_conversations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TEMPORARY", 3)

    async def test() -> None:
        async with House() as house:
            for number in range(8):
                text = f"{number} " * 8
                await house.answer(
                    lambda text=text: house.all.temporary("", SMALL, list(text.encode())), text, 1
                )
            assert len(house.all.temporary_ones) == 3

    run(test)


# --- moves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", [1, 2])
def test_conversations_that_take_turns_are_as_if_alone(sequences: int) -> None:
    texts = {name: [TEXT[n : n + 30] + name for n in (0, 20, 40)] for name in ("anna", "ben", "cleo")}

    async def together() -> dict[str, bytes]:
        async with House(FakeEngine(n_ctx=64, n_sequences=sequences, n_batch=32)) as house:
            for turn in range(3):
                await asyncio.gather(
                    *(house.answer(house.named(name), "".join(texts[name][: turn + 1]), 0) for name in texts)
                )
            return {name: house.state_of(house.named(name)) for name in texts}

    async def alone(name: str) -> bytes:
        async with House() as house:
            for turn in range(3):
                await house.answer(house.named(name), "".join(texts[name][: turn + 1]), 0)
            return house.state_of(house.named(name))

    found = asyncio.run(together())
    for name in texts:
        assert found[name] == asyncio.run(alone(name)), name


def test_whoever_is_cancelled_while_it_moves_in_leaves_everything_whole() -> None:
    """At every point of the event loop at which a request can be cancelled."""

    async def test() -> None:
        engine = FakeEngine(n_ctx=64, n_sequences=1, n_batch=32)
        async with House(engine) as house:
            anna, ben = house.named("anna"), house.named("ben")
            await house.answer(anna, TEXT, 0)
            await house.answer(ben, TEXT[::-1], 0)
            was = {one: house.state_of(one) for one in (anna, ben)}
            cancelled = 0
            for turns in range(40):
                one = (anna, ben)[turns % 2]

                async def lease(one: Conversation = one) -> None:
                    async with house.all.lease(one):
                        pass

                task = asyncio.ensure_future(lease())
                for _ in range(turns // 2):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
                cancelled += task.cancelled()
                assert sum(bool(slot.busy) for slot in house.all.slots) == 0
                assert (anna.slot is None) == (anna.parked is not None)
                assert (ben.slot is None) == (ben.parked is not None)
                assert [anna.slot, ben.slot].count(None) == 1
                assert not anna.lock.locked()
                assert not ben.lock.locked()
                assert {one: house.state_of(one) for one in (anna, ben)} == was
            assert cancelled > 3
            again = await house.answer(anna, TEXT, 0)
            assert again.outcome.read_tokens == 0

    run(test)


@pytest.mark.parametrize("fails", ["save_sequence", "load_sequence"])
def test_a_move_that_fails_loses_nothing(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=1, n_batch=32)) as house:
            anna, ben = house.named("anna"), house.named("ben")
            await house.answer(anna, TEXT[:40], 0)
            await house.answer(ben, TEXT[40:70], 0)
            was = house.state_of(anna), house.state_of(ben)

            def fail(*_: Any) -> Any:
                raise RuntimeError("the engine is out of order")

            with monkeypatch.context() as patch:
                patch.setattr(house.engine, fails, fail)
                if fails == "save_sequence":
                    with pytest.raises(RuntimeError, match="out of order"):
                        await house.answer(anna, TEXT[:40], 0)
                else:  # the context is read again
                    await house.answer(anna, TEXT[:40], 0)
            for one, text in ((anna, TEXT[:40]), (ben, TEXT[40:70])):
                again = await house.answer(one, text, 0)
                assert again.outcome.read_tokens == 0
            assert (house.state_of(anna), house.state_of(ben)) == was
            assert not any(slot.busy for slot in house.all.slots)

    run(test)


def test_who_stops_listening_gives_the_sequence_back() -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=1, n_batch=8)) as house:
            anna, ben = house.named("anna"), house.named("ben")
            tokens = house.generating(anna, TEXT, 10_000).tokens()
            await anext(tokens)
            await tokens.aclose()
            assert not house.all.slots[0].busy
            waiting = house.generating(ben, TEXT, 1).tokens()
            assert await anext(waiting)
            await waiting.aclose()
            while house.all.under_way:
                await asyncio.sleep(0.01)
            assert not house.all.slots[0].busy
            assert len(anna.history) > len(TEXT)
            # what was read and said before is known, and nothing else
            again = await house.answer(anna, bytes(anna.history.tolist()), 0)
            assert again.outcome.read_tokens == 0

    run(test)


def test_who_stops_waiting_does_not_stand_in_the_way() -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=1, n_batch=8)) as house:
            anna = house.named("anna")
            async with house.all.lease(anna):
                tokens = house.generating(house.named("ben"), TEXT, 4).tokens()
                waiting = asyncio.ensure_future(anext(tokens))
                await turns()
                assert house.all.waiting == 1
                waiting.cancel()
                await asyncio.wait({waiting})
                await tokens.aclose()
                await turns()
                assert house.all.waiting == 0
                assert not house.named("ben").lock.locked()
            assert (await house.answer(house.named("ben"), TEXT, 1)).outcome.completion_tokens == 1

    run(test)


def test_too_many_that_wait_are_told() -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=1), most_waiting=1) as house:
            async with house.all.lease(house.named("anna")):
                first = asyncio.ensure_future(house.answer(house.named("ben"), TEXT, 1))
                await turns()
                with pytest.raises(BusyError):
                    await house.answer(house.named("cleo"), TEXT, 1)
            await first

    run(test)


def test_a_server_without_a_queue_answers_who_need_not_wait() -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=1), most_waiting=0) as house:
            assert (await house.answer(house.named("anna"), TEXT, 1)).outcome.completion_tokens == 1

    run(test)


def test_who_waits_when_the_server_ends_is_told() -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=1)) as house:
            async with house.all.lease(house.named("anna")):
                waiting = [
                    asyncio.ensure_future(house.answer(house.named(name), TEXT, 1))
                    for name in ("anna", "ben")
                ]
                await turns()
                house.all.end()
            for one in waiting:
                with pytest.raises(Exception, match="shutting down"):
                    await one
            with pytest.raises(ClosedError):
                async with house.all.lease(house.named("cleo")):
                    raise AssertionError

    run(test)


# --- deleting ------------------------------------------------------------------------------------------------


def test_a_session_that_is_deleted_while_it_is_used_ends_in_peace(tmp_path: Path) -> None:
    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            anna = house.named("anna")
            await house.answer(anna, TEXT, 0)
            assert await house.all.save(anna)
            assert house.all.files is not None
            assert house.all.files.exists(anna.key)
            async with house.all.lease(anna) as slot:
                waiting = asyncio.ensure_future(house.answer(anna, TEXT, 1))
                await turns()
                await house.all.delete(anna)
                assert not house.all.files.exists(anna.key)
                assert slot.session.memory is not None
            with pytest.raises(InvalidParamError, match="deleted meanwhile"):
                await waiting
            assert slot.conversation is None
            assert slot.session.memory is None
            assert slot.session.context_tokens == ()
            assert not await house.all.save(anna)
            assert not house.all.files.exists(anna.key)
            fresh = await house.answer(house.named("anna"), TEXT, 0)
            assert fresh.outcome.cached_tokens == 0

    run(test)


def test_a_session_that_is_deleted_at_rest_leaves_no_text_behind() -> None:
    async def test() -> None:
        async with House() as house:
            anna = house.named("anna")
            await house.answer(anna, TEXT, 0)
            slot = anna.slot
            assert slot is not None
            await house.all.delete(anna)
            assert (slot.conversation, anna.slot, anna.parked) == (None, None, None)
            assert slot.session.context_tokens == ()

    run(test)


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["folder", "temporary"])
def test_sessions_are_spilled_and_come_back_as_they_were(own: bool, tmp_path: Path) -> None:
    names = [f"session {number}" for number in range(8)]

    async def test() -> None:
        async with House(files=SessionFiles(tmp_path if own else None), warm=2) as house:
            for name in names:
                await house.answer(house.named(name), TEXT + name, 3)
            was = {}
            for name in names:
                while house.all._tidying is not None and not house.all._tidying.done():
                    await asyncio.sleep(0.01)
                async with house.all.lease(house.named(name)):
                    was[name] = house.state_of(house.named(name))
            while house.all._tidying is not None and not house.all._tidying.done():
                await asyncio.sleep(0.01)
            places = [house.named(name).place for name in names]
            assert places.count("memory") <= 2
            assert places.count("file") >= 4
            for name in names:
                again = await house.answer(house.named(name), TEXT + name, 0)
                assert again.outcome.read_tokens == 0, name
                assert house.state_of(house.named(name)) == was[name]
                assert house.named(name).requests == 3

    run(test)


def test_sessions_outlive_the_server(tmp_path: Path) -> None:
    async def first() -> bytes:
        async with House(files=SessionFiles(tmp_path)) as house:
            anna = house.named("anna")
            await house.answer(anna, TEXT * 2, 3)  # more than the context
            await house.answer(anna, TEXT[:20] + "a branch", 3)
            await house.answer(anna, TEXT * 2, 3)
            assert await house.all.save_all() == 0
            return house.state_of(anna)

    async def second(was: bytes) -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            anna = house.all.find(Key("", "anna"), SMALL)
            assert anna is not None
            assert anna.place == "file"
            for text in (TEXT * 2, TEXT[:20] + "a branch", TEXT * 2):
                again = await house.answer(anna, text, 0)
                assert again.outcome.read_tokens == 0
                assert again.outcome.cached_tokens == len(text)
            assert house.state_of(anna) == was
            assert again.outcome.atlas["not_unlearned_tokens"] == len("a branch") + 6 + 3
            assert house.all.find(Key("another key", "anna"), SMALL) is None
            assert house.all.find(Key("", "Anna"), SMALL) is None

    asyncio.run(second(asyncio.run(first())))


@pytest.mark.parametrize("exact", [True, False])
def test_a_save_of_what_goes_on_keeps_everything(exact: bool, tmp_path: Path) -> None:
    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            anna = house.named("anna")
            await house.answer(anna, TEXT, 3)
            assert await house.all.save(anna, exact=exact)
            assert not await house.all.save(anna, exact=exact)  # only what has changed
            assert await house.all.save(anna) is not exact  # the bytes of the context are still to be saved
            was = house.state_of(anna)
            del house.all.named[anna.key]
            again = house.all.find(anna.key, SMALL)
            assert again is not None
            answer = await house.answer(again, TEXT, 0)
            assert answer.outcome.read_tokens == 0
            assert house.state_of(again) == was

    run(test)


def test_a_damaged_session_is_set_aside_and_said(tmp_path: Path) -> None:
    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            anna = house.named("anna")
            await house.answer(anna, TEXT, 3)
            await house.all.save(anna)
            assert house.all.files is not None
            path = Path(house.all.files.path_of(anna.key))
            path.write_bytes(path.read_bytes()[:-40])
            del house.all.named[anna.key]
            again = house.named("anna")
            assert again.place == "file"
            answer = await house.answer(again, TEXT, 1)
            assert answer.outcome.cached_tokens == 0
            assert "starts anew" in answer.outcome.atlas["problem"]
            assert str(tmp_path) not in answer.outcome.atlas["problem"]
            assert [name for name in os.listdir(tmp_path) if name.endswith(".aside")]
            assert "problem" not in (await house.answer(again, TEXT, 1)).outcome.atlas

    run(test)


@pytest.mark.parametrize(
    "error",
    [
        FileAccessError("cannot read: too many open files"),
        ConflictError("it was touched, time and again"),
        MemoryError("a gigabyte"),
    ],
    ids=["files", "touched", "RAM"],
)
def test_a_session_that_cannot_be_read_now_is_not_lost(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that opens many connections must not have another's session set aside."""

    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            await house.answer(house.named("anna"), TEXT, 0)
            await house.all.save(house.named("anna"))
            del house.all.named[house.named("anna").key]
            with monkeypatch.context() as patch:

                def fail(*_: Any, **__: Any) -> None:
                    raise error

                patch.setattr(session_files, "read_session_state", fail)
                with pytest.raises(type(error)):
                    await house.answer(house.named("anna"), TEXT, 1)
            assert not [name for name in os.listdir(tmp_path) if name.endswith(".aside")]
            assert (await house.answer(house.named("anna"), TEXT, 0)).outcome.read_tokens == 0

    run(test)


def test_a_disk_that_is_away_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            await house.answer(house.named("anna"), TEXT, 0)
            await house.all.save(house.named("anna"))
            key = house.named("anna").key
            del house.all.named[key]
            with monkeypatch.context() as patch:

                def stale(*_: Any, **__: Any) -> None:
                    raise OSError(errno.ESTALE, "Stale file handle")

                patch.setattr(session_files.os, "stat", stale)
                with pytest.raises(FileAccessError):
                    house.named("anna")
            assert (await house.answer(house.named("anna"), TEXT, 0)).outcome.read_tokens == 0

    run(test)


def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    async def test() -> None:
        folder = tmp_path / "sessions"
        async with House(files=SessionFiles(folder)) as house:
            await house.answer(house.named("anna"), TEXT, 0)
            shutil.rmtree(folder)
            assert await house.all.save_all() == 0
            assert folder.stat().st_mode & 0o77 == 0
            del house.all.named[house.named("anna").key]
            assert (await house.answer(house.named("anna"), TEXT, 0)).outcome.read_tokens == 0

    run(test)


def test_a_session_that_is_deleted_while_it_comes_back_is_not_said_to_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            anna = house.named("anna")
            await house.answer(anna, TEXT, 1)
            await house.all.save(anna)
            files, loop = house.all.files, asyncio.get_running_loop()
            assert files is not None
            del house.all.named[anna.key]
            again = house.named("anna")
            read = files.read

            def too_late(key: Key, model: str) -> Any:
                asyncio.run_coroutine_threadsafe(house.all.delete(again), loop).result(60)
                return read(key, model)

            with monkeypatch.context() as patch:
                patch.setattr(files, "read", too_late)
                with pytest.raises(InvalidParamError, match="deleted meanwhile"):
                    await house.answer(again, TEXT, 1)
            assert (await house.answer(house.named("anna"), TEXT, 1)).outcome.cached_tokens == 0

    run(test)
    assert caplog.text == ""


def test_a_full_disk_keeps_sessions_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with House(files=SessionFiles(tmp_path), warm=0) as house:

            def full(*_: Any, **__: Any) -> None:
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                for name in ("anna", "ben", "cleo", "dora"):
                    await house.answer(house.named(name), TEXT, 1)
                while house.all._tidying is None or not house.all._tidying.done():
                    await asyncio.sleep(0.01)
                assert house.all.spill_problem
                assert await house.all.save_all() == 4
            for name in ("anna", "ben", "cleo", "dora"):
                assert (await house.answer(house.named(name), TEXT, 0)).outcome.read_tokens == 0
            assert await house.all.save_all() == 0

    run(test)


def test_main_memory_for_what_rests_is_bounded() -> None:
    async def test() -> None:
        async with House(cache_bytes=60_000) as house:
            for number in range(12):
                text = f"{number} " * 20
                await house.answer(
                    lambda text=text: house.all.temporary("", SMALL, list(text.encode())), text, 1
                )
            while house.all._tidying is not None and not house.all._tidying.done():
                await asyncio.sleep(0.01)
            resting = [one for one in house.all.temporary_ones if one.parked is not None]
            assert sum(one.size for one in resting) <= 60_000
            assert len(house.all.temporary_ones) < 12

    run(test)


@pytest.mark.parametrize(("sequences", "warm", "cache", "back", "inside"), [
    (2, 64, None, "CD", "D"), (8, 64, None, "ABCD", "ABCD"), (2, 1, None, "D", "D"), (2, 0, None, "", ""),
    (2, 64, 1, "", ""),
])  # fmt: skip
def test_who_was_there_last_is_brought_back_before_anybody_asks(
    sequences: int, warm: int, cache: int | None, back: str, inside: str, tmp_path: Path
) -> None:
    async def test() -> None:
        states = {}
        async with House(files=SessionFiles(tmp_path)) as house:
            for at, name in enumerate("ABCD"):
                found = house.named(name)
                await house.answer(found, TEXT + name)
                states[name] = house.state_of(found)
                await house.all.save(found)
                assert house.all.files is not None
                os.utime(house.all.files.path_of(found.key), (1e9 + at, 1e9 + at))
        again = FakeEngine(n_ctx=64, n_sequences=sequences, n_batch=32)
        async with House(again, files=SessionFiles(tmp_path), warm=warm, cache_bytes=cache) as house:
            await house.all.bring_back(SMALL, sequences)
            there = {key.name: one for key, one in house.all.named.items() if not one.cold}
            assert "".join(sorted(name or "" for name in there)) == back
            assert "".join(sorted(name for name in back if there[name].slot is not None)) == inside
            for name in back:
                assert house.state_of(there[name]) == states[name]
            decodes = again.decodes
            answer = await house.answer(house.named("D"), TEXT + "D", 1)
            # its last token; the new one is decoded with what follows it
            assert (answer.outcome.read_tokens, again.decodes - decodes) == (0, 1)

    run(test)


@pytest.mark.model
@pytest.mark.parametrize("build", ["same", "other"])
def test_beside_a_model_a_session_goes_on_after_a_restart(build: str, tmp_path: Path) -> None:
    """Its context comes back as bytes; where another build is to read them, its text is read again."""

    def opened() -> Any:
        return open_engine(str(MODEL), n_ctx=256, n_sequences=2, n_threads=1)

    async def test() -> None:
        ends: list[list[int]] = []
        for restarts in (False, True):
            files = tmp_path / str(restarts)
            with opened() as engine:
                text = engine.tokenize("def common_prefix(texts):\n    return texts[0]\n\n" * 4)
                async with House(engine, files=SessionFiles(files)) as house:
                    first = await house.answer(house.named("anna"), b"", 8, tokens=text)
                    more = [*text, *(token.id for token in first.outcome.tokens), *text[:5]]
                    await house.all.save_all()
                    if not restarts:
                        ends.append(await _end(house, more))
            if restarts:
                with opened() as engine:
                    if build == "other":
                        engine.info = dataclasses.replace(engine.info, build="another")
                    async with House(engine, files=SessionFiles(files)) as house:
                        await house.all.bring_back(SMALL, 2)
                        assert house.named("anna").slot is not None
                        ends.append(await _end(house, more))
                        # five tokens, and five of six that are said; the text before them, where it is read again
                        assert engine.decodes == 6 + (build == "other") * -(
                            -(len(more) - 5) // engine.n_batch
                        )
        assert build == "other" or ends[0] == ends[1]
        assert len(ends[1]) == 6

    async def _end(house: House, tokens: list[int]) -> list[int]:
        found = await house.answer(house.named("anna"), b"", 6, tokens=tokens)
        assert found.outcome.read_tokens == 5
        return [token.id for token in found.outcome.tokens]

    run(test)


def test_what_is_no_good_is_not_brought_back_and_stays_for_who_asks(tmp_path: Path) -> None:
    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            for name in "AB":
                await house.answer(house.named(name), TEXT)
            await house.all.save_all()
            assert house.all.files is not None
            paths = [house.all.files.path_of(Key("", name)) for name in "AB"]
        data = Path(paths[0]).read_bytes()
        Path(paths[0]).write_bytes(data[:2000] + bytes(64) + data[2064:])
        other = FakeEngine(n_ctx=64, n_sequences=2, n_batch=32)
        other.info = dataclasses.replace(other.info, identity="ab" * 32)
        for engine in (other, FakeEngine(n_ctx=64, n_sequences=2, n_batch=32)):
            async with House(engine, files=SessionFiles(tmp_path)) as house:
                await house.all.bring_back(SMALL, 2)
                assert all(os.path.isfile(path) for path in paths)
                found = [key.name for key, one in house.all.named.items() if not one.cold]
                assert found == ([] if engine is other else ["B"])
                if engine is not other:
                    answer = await house.answer(house.named("A"), TEXT)
                    assert "could not be used" in answer.outcome.atlas["problem"]

    run(test)


def test_contexts_in_files_are_bounded_and_those_used_last_stay(tmp_path: Path) -> None:
    """The others' texts are read again, and nothing is learned again."""

    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            one = house.named("a")
            await house.answer(one, TEXT[:40])
            await house.all.save(one)
            size = context_bytes(house.all.files.path_of(one.key)) if house.all.files else 0
            assert size > 0
        for at, names in enumerate(("bcd", "efg")):  # those of an earlier server count, too
            files = SessionFiles(tmp_path, most_context=3 * size)
            async with House(files=files) as house:
                for number, name in enumerate(names):
                    found = house.named(name)
                    await house.answer(found, TEXT[:40])
                    found.used = 2e9 + 10 * at + number
                await house.all.save_all()
                kept = [name for name in "abcdefg" if files.exists(Key("", name))]
                there = [name for name in kept if context_bytes(files.path_of(Key("", name)))]
                assert "".join(there) == names
                assert [one.key.name for one in files.recent(2, house.engine.info.identity)] == [
                    *names[:0:-1]
                ]
        async with House(files=SessionFiles(tmp_path)) as house:
            for name, decodes in (("b", 3), ("g", 1)):  # the last token of the text; the context
                was = house.engine.decodes
                found = house.all.find(Key("", name), SMALL)
                answer = await house.answer(found, TEXT[:40], 1)
                assert answer.outcome.read_tokens == 0
                assert house.engine.decodes - was == decodes
        files = SessionFiles(None, most_context=size - 1)
        async with House(files=files) as house:  # one alone is too large
            found = house.named("e")
            await house.answer(found, TEXT[:40])
            assert await house.all.save(found)
            assert not context_bytes(files.path_of(found.key))
            assert not await house.all.save(found)  # it is as exact as it can be

    run(test)


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    from atlas_kit.errors import LockedError

    first = SessionFiles(tmp_path)
    with pytest.raises(LockedError, match="another server"):
        SessionFiles(tmp_path)
    first.close()
    SessionFiles(tmp_path).close()


def test_a_temporary_folder_goes_with_its_server() -> None:
    async def test() -> str:
        async with House(files=SessionFiles(), warm=0) as house:
            for name in ("anna", "ben", "cleo"):
                await house.answer(house.named(name), TEXT, 1)
            assert house.all.files is not None
            await house.all.save_all()
            assert os.stat(house.all.files.folder).st_mode & 0o77 == 0
            return house.all.files.folder

    assert not os.path.exists(run(test))


def test_work_of_an_owner_that_is_gone_is_waited_for() -> None:
    async def test() -> None:
        async with House() as house:
            done = []
            async with house.all.lease(house.named("anna")) as slot:
                task = asyncio.ensure_future(
                    called(house.scheduler, slot.session, lambda: done.append(slot.session.sequence))
                )
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
                assert task.cancelled()
                assert len(done) == 1

    run(test)


def test_a_session_that_begins_while_another_of_its_name_is_deleted_is_its_own(tmp_path: Path) -> None:
    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            anna = house.named("anna")
            await house.answer(anna, TEXT, 0)
            await house.all.save(anna)
            async with anna.writing:  # as if it were being written
                deleting = asyncio.ensure_future(house.all.delete(anna))
                await asyncio.sleep(0)
                fresh = house.named("anna")
                assert fresh is not anna
                assert (await house.answer(fresh, TEXT[:20], 0)).outcome.cached_tokens == 0
                saving = asyncio.ensure_future(house.all.save(fresh))
                await turns()
            await deleting
            assert await saving
            del house.all.named[fresh.key]
            again = house.named("anna")
            assert again.place == "file"
            answer = await house.answer(again, TEXT[:20], 0)
            assert answer.outcome.read_tokens == 0
            assert "problem" not in answer.outcome.atlas

    run(test)


def test_what_has_no_bytes_of_its_context_is_spilled_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=1), files=SessionFiles(tmp_path), warm=0) as house:
            anna = house.named("anna")
            await house.answer(anna, TEXT, 0)
            async with house.all.lease(house.named("ben")):
                assert anna.parked is not None
                anna.parked.data = None
                anna.version += 1
            while house.all._tidying is not None and not house.all._tidying.done():
                await asyncio.sleep(0.01)
            assert anna.place == "file"
            assert (await house.answer(anna, TEXT, 0)).outcome.read_tokens == 0

    run(test)


def test_a_save_beside_decoding_leaves_the_memory_its_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes next is not copied for its sake, and the state that was taken stays as it was."""

    async def test() -> None:
        async with House(files=SessionFiles(tmp_path)) as house:
            monkeypatch.setattr(house.all, "measure", lambda *_: None)  # which looks at it, too
            anna = house.named("anna")
            await house.answer(anna, TEXT, 0)
            memory = anna.memory
            assert memory is not None
            for pinned in (False, True):
                if pinned:
                    memory.pin()  # somebody else looks at it, too
                state, _ = await house.all.state(anna, exact=False)
                assert state is not None
                assert memory.pinned is pinned
                was = {name: array.tobytes() for name, array in state.memory.parameters.items()}
                await house.answer(anna, TEXT + "and so on, " * (4 + 4 * pinned), 0)
                assert {name: array.tobytes() for name, array in state.memory.parameters.items()} == was

    run(test)


def test_who_saves_does_not_queue_behind_requests() -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=2)) as house:
            anna, order = house.named("anna"), list[str]()

            async def then(name: str, work: Any) -> None:
                await work
                order.append(name)

            async with house.all.lease(anna):
                waiting = [
                    asyncio.ensure_future(then(str(one), house.answer(anna, TEXT, 1))) for one in range(3)
                ]
                await turns()
                waiting.append(asyncio.ensure_future(then("saved", house.all.state(anna, exact=False))))
                await turns()
            await asyncio.gather(*waiting)
            assert order == ["saved", "0", "1", "2"]

    run(test)
