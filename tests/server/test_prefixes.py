"""Beginnings of texts that fresh memories share: read once, and everything is as if each had read them itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
from atlas_kit.llama.forking import point_of
from atlas_kit.llama.parking import unpark
from atlas_kit.server import prefixes as module
from atlas_kit.server.conversation import Conversation
from atlas_kit.server.keys import Key
from atlas_kit.server.session_files import SessionFiles
from tests.server.test_conversations import SMALL, House, run, turns

MODEL = Path(__file__).parents[2] / "sample_data" / "models" / "tiny-python.gguf"

#: As long as six parts of a text that are decoded at once: sums of floats depend on what comes together.
PREFIX = "you are a helpful assistant, you answer in one word, and never say more than that to anybody... "
assert len(PREFIX) == 96
OTHER = SMALL.replace(window_size=32)


def engine(sequences: int = 2, **options: Any) -> FakeEngine:
    return FakeEngine(**{"n_ctx": 256, "n_sequences": sequences, "n_batch": 32, **options})


def fresh(house: House, text: str, namespace: str = "", settings: Any = SMALL) -> Any:
    return lambda: house.all.temporary(namespace, settings, list(text.encode()))


async def alone(text: str, settings: Any = SMALL) -> tuple[list[int], bytes, dict[str, Any]]:
    """What a memory says and becomes that reads a text itself, with nobody else there."""
    async with House(engine(1)) as house:
        found = await house.answer(fresh(house, text, settings=settings), text, 6)
        return await _found(house, found)


async def _found(house: House, answer: Any) -> tuple[list[int], bytes, dict[str, Any]]:
    outcome = answer.outcome
    told = {
        name: value
        for name, value in outcome.atlas.items()
        if name in ("omega_loss", "model_loss", "tokens_seen", "tokens_learned", "conversation_tokens")
    }
    return [token.id for token in outcome.tokens], house.state_of(answer.conversation), told


@pytest.mark.parametrize("sequences", [1, 2, 8])
def test_fresh_memories_that_come_at_once_read_what_they_share_once(sequences: int) -> None:
    async def test() -> None:
        texts = [PREFIX + f"{chr(65 + number)} question" for number in range(8)]
        async with House(engine(sequences)) as house:
            runs = await asyncio.gather(*(house.answer(fresh(house, text), text, 6) for text in texts))
            assert [one.outcome.cached_tokens for one in runs] == [0, *[len(PREFIX)] * 7]
            assert [one.outcome.read_tokens for one in runs[1:]] == [len("A question")] * 7
            assert len(list(house.all.prefixes)) == 1
            for one, text in zip(runs, texts, strict=True):
                assert await _found(house, one) == await alone(text)
            again = await house.answer(fresh(house, texts[3] + "!"), texts[3] + "!", 0)
            assert again.outcome.cached_tokens == len(
                PREFIX
            )  # a memory that answered is not the one that begins

    run(test)


def test_texts_that_are_the_same_are_read_once() -> None:
    async def test() -> None:
        async with House(engine(4)) as house:
            runs = await asyncio.gather(*(house.answer(fresh(house, PREFIX), PREFIX, 6) for _ in range(4)))
            assert [one.outcome.read_tokens for one in runs] == [len(PREFIX), 0, 0, 0]
            expected = await alone(PREFIX)
            assert all([await _found(house, one) == expected for one in runs])

    run(test)


def test_of_texts_that_come_one_after_another_the_second_stops_for_the_third() -> None:
    async def test() -> None:
        async with House(engine()) as house:
            cached = []
            for name in "ABCD":
                text = PREFIX + f"{name} question"
                session = house.named(name)
                cached.append((await house.answer(session, text)).outcome.cached_tokens)
                assert session.learned == len(text) + 4
            assert cached == [0, 0, len(PREFIX), len(PREFIX)]
            more = await house.answer(house.named("D"), PREFIX + "D question, and more")
            assert more.outcome.read_tokens == len(", and more")

    run(test)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("differs", ["key", "settings"])
def test_nothing_is_shared_with_another_key_or_another_kind_of_memory(at_once: bool, differs: str) -> None:
    """A canary: the time of an answer tells nobody that somebody else has sent the same."""

    async def test() -> None:
        async with House(engine(8)) as house:

            def one(number: int) -> Any:
                other = number % 2
                text = PREFIX + f"{number}"
                namespace = "other" if other and differs == "key" else ""
                settings = OTHER if other and differs == "settings" else SMALL
                return house.answer(fresh(house, text, namespace, settings), text)

            if at_once:
                runs = await asyncio.gather(*(one(number) for number in range(2)))
            else:
                runs = [await one(number) for number in (0, 2, 4, 1)]
                assert runs[2].outcome.cached_tokens == len(PREFIX)
            assert runs[-1].outcome.cached_tokens == 0

    run(test)


def test_who_comes_when_a_reader_is_further_reads_for_those_who_come_after() -> None:
    async def test() -> None:
        async with House(engine(8)) as house:
            prefixes, asked = house.all.prefixes, list(PREFIX.encode())
            readers = []
            for end in (b"A", b"B", b"C"):
                prefix, reader = await prefixes.begin(house.named("x"), SMALL, [*asked, *end, *bytes(70)])
                assert prefix is None
                readers.append(reader)
                if end == b"A":
                    assert (
                        reader.stop(0, 1000) == len(asked) + 71
                    )  # all of it is in one decode, which has begun
                if end == b"B":
                    assert reader.stop(0, 1000) == len(asked)  # it stops for whoever comes next
                    break
            third = asyncio.ensure_future(
                prefixes.begin(house.named("y"), SMALL, [*asked, *b"C", *bytes(70)])
            )
            await turns()
            assert not third.done()
            prefixes.over(readers[0])
            await turns()
            assert not third.done()
            with AtlasSession(engine(1), SMALL) as session:
                session.feed(PREFIX)
                prefixes.reached(readers[1], len(asked), point_of(session))
            found, reader = await third
            assert found is not None
            assert list(found.tokens) == asked
            for one in (readers[1], reader):
                prefixes.over(one)

    run(test)


def test_who_waits_for_a_reader_that_leaves_reads_it_all() -> None:
    async def test() -> None:
        async with House(engine(1)) as house:
            async with house.all.lease(house.named("somebody")):
                first = asyncio.ensure_future(house.answer(fresh(house, PREFIX + "A"), PREFIX + "A"))
                await turns()
                rest = [
                    asyncio.ensure_future(house.answer(fresh(house, PREFIX + name), PREFIX + name))
                    for name in "BC"
                ]
                await turns()
                first.cancel()
                await asyncio.wait({first})
            runs = [await one for one in rest]
            assert [one.outcome.cached_tokens for one in runs] == [
                0,
                len(PREFIX),
            ]  # the next one reads for all

    run(test)


def test_a_context_that_cannot_be_copied_is_read_by_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with House(engine(4)) as house:

            def fail(_: int) -> Any:
                raise RuntimeError("out of order")

            monkeypatch.setattr(house.engine, "save_sequence", fail)
            texts = [PREFIX + name for name in "ABC"]
            runs = await asyncio.gather(*(house.answer(fresh(house, text), text) for text in texts))
            assert [one.outcome.cached_tokens for one in runs] == [0, 0, 0]
            assert [one.outcome.completion_tokens for one in runs] == [4, 4, 4]

    run(test)


def test_what_must_be_read_is_read() -> None:
    async def test() -> None:
        async with House(engine()) as house:
            for options in ({}, {}, {"reuse": False}, {"score_prompt": True}):
                text = PREFIX + f"{len(options)}"
                found = await house.answer(house.all.new(Key("", None), SMALL), text, **options)
                assert found.outcome.cached_tokens == 0
            with_other = {"changes": {"learning_rate": 0.5}}
            found = await house.answer(house.named("anna"), PREFIX + "x", **with_other)
            assert found.outcome.cached_tokens == 0
            cached = [await house.answer(house.named(name), PREFIX + name) for name in ("ben", "carl")]
            assert [one.outcome.cached_tokens for one in cached] == [0, len(PREFIX)]

    run(test)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(module, "MOST_KEPT", 3)
        async with House(engine()) as house:
            for number in range(6):
                text = f"{number}" * 70
                for _ in range(2):
                    await house.answer(house.all.new(Key("", None), SMALL), text, 0)
            kept = list(house.all.prefixes)
            assert [chr(one.tokens[0]) for one in kept] == ["3", "4", "5"]
        async with House(engine(), cache_bytes=0) as house:
            texts = [PREFIX + name for name in "ABC"]
            runs = await asyncio.gather(*(house.answer(fresh(house, text), text) for text in texts))
            assert all(one.outcome.cached_tokens == 0 for one in runs)

    run(test)


def test_a_session_that_is_deleted_leaves_nothing_for_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with House(engine()) as house:
            for name in "AB":
                await house.answer(house.named(name), PREFIX + name)
            assert list(house.all.prefixes)
            for name in "AB":
                await house.all.delete(house.named(name))
            assert not list(house.all.prefixes)
            assert (await house.answer(house.named("C"), PREFIX + "C")).outcome.cached_tokens == 0
            assert (await house.answer(house.named("D"), PREFIX + "D")).outcome.cached_tokens == 0

    run(test)


def test_a_session_that_began_elsewhere_is_saved_and_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with House(engine(), files=SessionFiles(tmp_path)) as house:
            expected: list[Conversation] = []
            for name in "ABC":
                await house.answer(house.named(name), PREFIX + name)
                expected.append(house.named(name))
            await house.all.save_all()
            states = [house.state_of(one) for one in expected]
        async with House(engine(), files=SessionFiles(tmp_path), warm=0) as house:
            for name, state in zip("ABC", states, strict=True):
                found = house.all.find(Key("", name), SMALL)
                assert found is not None
                await house.all.wake(found)
                assert house.state_of(found) == state

    run(test)


@pytest.mark.parametrize("length", [65, 77, 98])
def test_a_copy_is_as_a_session_that_reads_the_beginning_and_then_the_rest(length: int) -> None:
    """Also where a step of the memory is half full between the two."""

    async def test() -> None:
        texts = [(PREFIX + "and so on")[:length] + one for one in ("ABC", "DEF", "GHI")]
        async with House(engine(1)) as house:
            runs = [await house.answer(house.named(text[-3:]), text, 0) for text in texts]
            assert [one.outcome.cached_tokens for one in runs] == [0, 0, length]
            with AtlasSession(engine(1), SMALL) as session:
                session.feed_limit = 16
                for part in (texts[2][:length], texts[2][length:]):
                    session.feed(part)
                assert session.memory is not None
                states = [one.conversation.memory.pin().groups() for one in runs if one.conversation.memory]
                here = session.memory.pin().groups()
                assert _bytes(states[2]) == _bytes(here)
                assert session.stats["loss"] == runs[2].outcome.atlas["omega_loss"]

    run(test)


def _bytes(groups: Any) -> dict[str, bytes]:
    return {f"{group}.{name}": array.tobytes() for group in groups for name, array in groups[group].items()}


@pytest.mark.model
def test_beside_a_model_a_copy_goes_on_as_its_reader_does() -> None:
    with AtlasSession(str(MODEL), engine_options={"n_ctx": 256, "n_sequences": 2}) as session:
        text = session.tokens_of("def common_prefix(texts):\n    return texts[0]\n\n" * 4)
        session.feed(text)
        point = point_of(session)
        other = AtlasSession(session.engine, None)
        unpark(other, point.parked(session.engine, counts=True))
        ways = []
        for one in (session, other):
            one.feed(text[:24])
            assert one.memory is not None
            said = [token.id for token in one.generate(max_tokens=8, sampling=Sampling(temperature=0))]
            ways.append(
                (said, one.stats["loss"], {n: a.tobytes() for n, a in one.memory.pin().window.items()})
            )
        assert ways[0] == ways[1]
        assert point.context == tuple(text)
