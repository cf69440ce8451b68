"""One text to be generated: what is noted of it, whoever listens, and for how long."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import ClosedError, InvalidParamError
from atlas_kit.llama import FakeEngine, Sampling
from atlas_kit.server.atlas_object import Blend
from atlas_kit.server.conversation import Conversation
from atlas_kit.server.generation import Generating
from atlas_kit.server.jobs import finished
from atlas_kit.server.keys import Key
from atlas_kit.server.metrics import Metrics
from atlas_kit.server.outcome import Generation
from atlas_kit.server.problems import ApiError
from atlas_kit.server.session_files import SessionFiles
from server.test_conversations import SMALL, TEXT, House


def run(test: Any) -> Any:
    return asyncio.run(test())


@pytest.mark.parametrize("at", range(12))
def test_who_is_cancelled_again_and_again_leaves_a_session_whole(at: int) -> None:
    """As a cancel scope does it: at every turn of the loop until the listener has gone."""

    async def test() -> None:
        async with House(FakeEngine(n_ctx=256, n_sequences=1, n_batch=16)) as house:
            anna = house.named("anna")
            run = house.generating(anna, TEXT * 2, 200)
            task = asyncio.ensure_future(_listen(run))
            for _ in range(3 * at):
                await asyncio.sleep(0.002)
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
            while house.all.under_way:
                await asyncio.sleep(0.01)
            assert not anna.lock.locked()
            assert not house.all.slots[0].busy
            memory = anna.memory
            assert memory is not None
            known = len(anna.history)
            # all that was learned is known, but for a last token whose successor is not there yet
            assert memory.tokens_seen in (known, max(0, known - 1))
            again = await house.answer(anna, bytes(anna.history.tolist()) or b"a", 0)
            assert again.outcome.read_tokens == (0 if known else 1)

    run(test)


async def _listen(run: Any) -> None:
    async for _ in run.tokens():
        pass


def test_what_completes_a_stop_string_is_not_read() -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=256, n_sequences=1, n_batch=32)) as house:
            anna = house.named("anna")
            whole = (await house.answer(anna, TEXT, 12)).outcome
            ben = house.named("ben")
            stop = bytes(token.id for token in whole.tokens[4:6]).decode("latin-1")
            asked = Generation(list(TEXT.encode()), Sampling(temperature=0), 12, [stop])
            stopped = Generating(house.all, lambda: ben, asked, Metrics(), remembers=True)
            await _listen(stopped)
            if stopped.outcome.stop is not None:
                assert stopped.outcome.finish_reason == "stop"
                assert list(ben.history) == [*TEXT.encode(), *(token.id for token in whole.tokens[:5])]
                assert ben.learned == len(ben.history)

    run(test)


def test_a_text_without_a_memory_must_fit() -> None:
    async def test() -> None:
        async with House(FakeEngine(n_ctx=64, n_sequences=1)) as house:

            def new(text: str, **more: Any) -> Generating:
                asked = Generation(list(text.encode()), Sampling(temperature=0), None)
                choose = lambda: house.all.temporary("", None, [])  # noqa: E731
                return Generating(house.all, choose, asked, Metrics(), remembers=False, **more)

            with pytest.raises(ApiError) as error:
                new("x" * 65)
            assert error.value.code == "context_length_exceeded"
            with pytest.raises(ApiError, match="empty"):
                new("")
            outcome = new("x" * 60)
            await _listen(outcome)
            assert outcome.outcome.completion_tokens <= 4
            assert not house.all.under_way

    run(test)


def test_hooks_come_before_and_after() -> None:
    async def test() -> None:
        async with House() as house:
            anna, seen = house.named("anna"), []

            async def before(one: Conversation) -> None:
                seen.append(("before", one.lock.locked(), len(one.history)))

            async def after(one: Conversation) -> dict[str, Any]:
                seen.append(("after", one.lock.locked(), len(one.history)))
                return {"saved": True}

            asked = Generation(list(TEXT.encode()), Sampling(temperature=0), 2)
            one = Generating(
                house.all, lambda: anna, asked, Metrics(), remembers=True, before=before, after=after
            )
            await _listen(one)
            assert seen == [("before", False, 0), ("after", False, len(TEXT) + 2)]
            assert one.outcome.atlas["saved"] is True

    run(test)


def test_a_grammar_that_cannot_be_followed_costs_nothing() -> None:
    async def test() -> None:
        async with House() as house:
            decodes = house.engine.decodes
            for wait in (Generating.ready, _listen):
                run = house.generating(house.named("anna"), TEXT, sampling=Sampling(grammar="root ::= x"))
                with pytest.raises(InvalidParamError):
                    await wait(run)
            assert house.engine.decodes == decodes
            assert not house.all.under_way

    run(test)


def test_the_blend_is_a_mean() -> None:
    import numpy as np

    class Read:
        def __init__(self, weights: Any) -> None:
            self.weights = np.array(weights)

    blend: Any = Blend()
    assert blend.mean is None
    blend(Read([[0.5, 0.25, 0.25]]), np.zeros(1), None)
    blend(Read([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]), np.zeros(2), None)
    assert blend.mean == pytest.approx(0.5)


def test_what_is_carried_to_its_end_is_although_nobody_waits() -> None:
    async def test() -> None:
        done = []

        async def work() -> int:
            for _ in range(5):
                await asyncio.sleep(0)
            done.append(1)
            return 7

        async def fail() -> None:
            await asyncio.sleep(0)
            raise ValueError("on purpose")

        assert await finished(work()) == 7
        for what in (work, fail):
            task = asyncio.ensure_future(finished(what()))
            await asyncio.sleep(0)
            task.cancel()
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
        assert done == [1, 1]
        with pytest.raises(ValueError, match="on purpose"):
            await finished(fail())

    run(test)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_at_once_every_session_is_as_if_alone(seed: int, tmp_path: Path) -> None:
    """Requests, clients that leave, saves, spills, forks and deletions, all at random on two sequences."""
    chance = random.Random(seed)
    names = ["anna", "ben", "cleo", "dora", "emil"]

    async def test() -> None:
        engine = FakeEngine(n_ctx=128, n_sequences=2, n_batch=16)
        async with House(engine, files=SessionFiles(tmp_path), warm=1, cache_bytes=400_000) as house:

            async def once() -> None:
                one = house.named(chance.choice(names))
                what = chance.random()
                text = f"{one.key.name} " + TEXT[: chance.randrange(80)]
                try:
                    if what < 0.5:
                        await house.answer(one, text, chance.randrange(6))
                    elif what < 0.7:
                        task = asyncio.ensure_future(house.answer(one, text, 40))
                        for _ in range(chance.randrange(30)):
                            await asyncio.sleep(0)
                        task.cancel()
                        await asyncio.wait({task})
                    elif what < 0.8:
                        await house.all.save(one, exact=chance.random() < 0.5)
                    elif what < 0.9:
                        find = lambda: house.all.temporary("", None, list(text.encode()))  # noqa: E731
                        await house.answer(find, text, 3)
                    elif what < 0.95:
                        await house.all.spill(one)
                    else:
                        await house.all.delete(one)
                except (InvalidParamError, ClosedError) as error:
                    assert "deleted meanwhile" in str(error)  # noqa: PT017 - what else may be raised is a fault

            for _ in range(40):
                await asyncio.gather(*(once() for _ in range(6)))
                tidying = house.all._tidying
                while house.all.under_way or (tidying is not None and not tidying.done()):
                    await asyncio.sleep(0.005)
                    tidying = house.all._tidying
                assert not any(slot.busy for slot in house.all.slots)
                inside = [id(slot.session.memory) for slot in house.all.slots if slot.session.memory]
                parked = [id(one.parked.memory) for one in house.all.named.values() if one.parked is not None]
                assert len({*inside, *parked}) == len(inside) + len(parked)  # no memory is in two places
                for one in house.all.named.values():
                    assert not one.lock.locked()
                    assert one.slot is None or (one.slot.conversation is one and one.parked is None)
            for name in names:  # and what is known of a session is its own
                one = house.all.find(Key("", name), SMALL)
                if one is None:
                    continue
                await house.all.wake(one)
                for branch in one.branches:
                    assert bytes(branch[: len(name) + 1].tolist()) == f"{name} ".encode()
                memory = one.memory
                assert memory is not None
                again = await house.answer(one, bytes(one.history.tolist()) or b"a", 0)
                assert again.outcome.read_tokens == (0 if len(one.history) > 1 else again.outcome.read_tokens)

    run(test)
