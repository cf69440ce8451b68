"""What is done to a server while its clients go on asking, and what it must have come through each time.

Restarts happen in the first part of a test; the other faults all the time. Each one leaves the server as it was: there,
with room on its disk, its own model, and a memory that is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

from atlas_kit.errors import AtlasError
from atlas_kit.persistence.session_file import read_session_state
from atlas_kit.persistence.snapshot import describe_memory
from tools.soak.checks import Log, new_canary, strangers
from tools.soak.process import DRAIN, KEYS, Server, leftovers
from tools.soak.traffic import Ask, Reply, Traffic, send

#: From the signal to the end: what running answers have, what being told takes, and saving; and a machine that is busy.
END_SECONDS = DRAIN + 5 + 25
#: Saving waits for its turn in each session, and in the shared memory for all who asked before.
SAVE_SECONDS = 180.0
#: Loading a model of 8 MiB, and all imports, while others use the machine.
START_SECONDS = 120.0
#: Times that saving is tried on a full disk, on which others make room.
TRIES = 5
#: Files whose texts are looked through at each restart.
FILES = 4
TEN_YEARS = 10 * 365 * 86400


class Faults:
    """Does things to a server, one at a time.

    Parameters
    ----------
    traffic, server
        Where it is noted, and to whom it is done.
    log
        Learns which files are damaged.
    lines
        What texts are made of.
    """

    def __init__(self, traffic: Traffic, server: Server, log: Log, lines: list[str], seed: int) -> None:
        self.traffic, self.server, self._log, self._lines = traffic, server, log, lines
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}
        #: Seconds from a signal to the end, and from a start to being ready.
        self.ending: list[float] = []
        self.starting: list[float] = []
        self.files_checked = 0
        self._canary = new_canary(self.chance)
        traffic.owners[self._canary] = "the keeper"
        self._kept = 0

    # --- what all of them need -------------------------------------------------------------------------------

    async def _ask(self, ask: Ask) -> Reply:
        return await send(self.traffic, self.server.port, KEYS[0], ask, {self._canary})

    async def begin(self) -> None:
        """Start the server, and wait until it is ready."""
        clock = self.traffic.clock
        began = clock()
        self.server.start()
        while self.server.over is None:
            if clock() - began > START_SECONDS:
                self.traffic.wrong("start", f"the server is not ready after {START_SECONDS:.0f} s")
                return
            if await self._ready():
                self.starting.append(clock() - began)
                return
            await asyncio.sleep(0.1)
        self.traffic.wrong("start", f"the server ended at its start with {self.server.over}")

    async def _ready(self) -> bool:
        with contextlib.suppress(OSError, asyncio.TimeoutError, ValueError, IndexError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            try:
                writer.write(b"GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                line = await asyncio.wait_for(reader.readline(), 10)
                return int(line.split()[1]) == 200
            finally:
                writer.close()
        return False

    async def ended(self, seconds: float) -> int | None:
        """Wait until the process is over; return its exit code, None where it does not end."""
        clock = self.traffic.clock
        began = clock()
        while self.server.over is None:
            if clock() - began > seconds:
                return None
            await asyncio.sleep(0.05)
        self.ending.append(clock() - began)
        return await asyncio.to_thread(self.server.buried)

    def _text(self) -> str:
        return f"# {self._canary}\nkept = {self._kept}\n" + "".join(self._lines[:6])

    async def _keep(self) -> None:
        """Let a session read something that it must still know when it is asked again."""
        self._kept += 1
        body = {"prompt": self._text(), "max_tokens": 0, "atlas": {"session_id": "keeper"}}
        await self._ask(Ask("keeping", "/v1/completions", body))

    async def _still_known(self) -> None:
        body = {"prompt": self._text(), "max_tokens": 0, "atlas": {"session_id": "keeper"}}
        reply = await self._ask(Ask("keeping", "/v1/completions", body))
        if reply.status != 200:
            return
        usage = reply.document["usage"]
        known, whole = usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]
        if known != whole:
            self.traffic.wrong(
                "memory", f"after a restart {known} of {whole} tokens are known that were saved"
            )

    async def _save_now(self) -> None:
        self.server.saved.clear()
        self.server.signal(signal.SIGUSR1)
        began = self.traffic.clock()
        while not self.server.saved.is_set():
            if self.traffic.clock() - began > SAVE_SECONDS:
                self.traffic.wrong("saving", f"SIGUSR1 has not saved all in {SAVE_SECONDS:.0f} s")
                return
            await asyncio.sleep(0.1)

    def _files(self) -> list[Path]:
        memories = [self.server.shared, *self.server.sessions.glob("*.atlas")]
        return [one for one in memories if one.exists()]

    def _check_files(self) -> list[tuple[str, list[int]]]:
        """See that all saved memories are whole; return texts of some, with the sessions that they are of."""
        found: list[tuple[str, list[int]]] = []
        files = self._files()
        chosen = set(self.chance.sample(files, min(FILES, len(files))))
        for path in files:
            try:
                state = read_session_state(path)
                info = describe_memory(path).metadata.get("session")
            except AtlasError as error:
                self.traffic.wrong("damage", f"{path.name} is not whole: {error}")
                continue
            self.files_checked += 1
            if path in chosen and isinstance(info, dict):
                texts = [*state.texts, state.tokens]
                name = f"{info.get('namespace')}/{info.get('name')}"
                found += [(name, list(map(int, text))) for text in texts if len(text)]
        return found

    async def _check_texts(self, texts: list[tuple[str, list[int]]]) -> None:
        """See that no session has learned what was said in another one."""
        seen: dict[str, set[str]] = {}
        for name, tokens in texts:
            reply = await send(
                self.traffic, self.server.port, KEYS[0], Ask("reading a file", "/detokenize", {"tokens": tokens}),
                set(self.traffic.owners),
            )  # fmt: skip
            if reply.status == 200:
                said = strangers(reply.document["content"], (), self.traffic.owners)
                seen.setdefault(name, set()).update(said)
        for name, owners in seen.items():
            if len(owners) > 1 or (owners and name.endswith("/None")):
                self.traffic.wrong("leak", f"a session's file has words in it of {', '.join(sorted(owners))}")

    async def _restarted(self, harm: Callable[[], None] | None = None) -> None:
        """Look at what was saved, and begin the next life; ``harm``: what happens while the server is down."""
        texts = await asyncio.to_thread(self._check_files)
        if harm is not None:
            harm()
        await self.begin()
        await self._check_texts(texts)

    async def again(self) -> None:
        """Begin another life after one that has ended by itself."""
        if self.server.process is not None:
            await asyncio.to_thread(self.server.buried)
        with self.traffic.during("end"):
            await self.begin()

    # --- restarts --------------------------------------------------------------------------------------------

    async def kill(self) -> None:
        """Kill it; what was saved is whole, and known when it is there again."""
        await self._keep()
        await self._save_now()
        await asyncio.sleep(self.chance.uniform(0, 3))
        with self.traffic.during("kill"):
            self.server.signal(signal.SIGKILL)
            await self.ended(60)
            await self._restarted()
        await self._still_known()

    async def end(self, number: int = signal.SIGTERM, harm: Callable[[], None] | None = None) -> None:
        """Ask it to end under load; it does so in time, with 0, and has saved all."""
        if harm is None:
            await self._keep()
        with self.traffic.during("end"):
            self.server.signal(number)
            code = await self.ended(END_SECONDS)
            if code is None:
                self.traffic.wrong("end", f"the server has not ended in {END_SECONDS} s")
                self.server.signal(signal.SIGKILL)
                await self.ended(60)
            elif code:
                self.traffic.wrong("end", f"the server ended with {code}")
            if code is not None and (left := leftovers(self.server.memories)):
                self.traffic.wrong("files", f"the server has left {', '.join(left)}")
            if code is not None and (left := [one.name for one in self.server.temporary.iterdir()]):
                self.traffic.wrong("files", f"the server has left temporary files: {', '.join(left)}")
            await self._restarted(harm)
        if harm is None:
            await self._still_known()

    async def interrupt(self) -> None:
        """The same with Ctrl-C."""
        await self.end(signal.SIGINT)

    async def damage(self) -> None:
        """Damage the shared memory and a session's while it is down: both are set aside, and it says so."""
        harm = self.chance.choice((_cut, _flip, _garbage, _empty))
        harmed: list[Path] = []

        def both() -> None:
            others = [one for one in self._files() if one != self.server.shared]
            for path in [self.server.shared, *self.chance.sample(others, min(1, len(others)))]:
                if path.exists():
                    harm(path)
                    harmed.append(path)
                    self._log.harmed.add(path.name)

        await self.end(harm=both)
        reply = await self._ask(Ask("looking", "/v1/atlas/status", method="GET"))
        if reply.status == 200 and self.server.shared in harmed:
            found = reply.document["memory_file"]
            if not found["set_aside"] or not found["problem"]:
                self.traffic.wrong(
                    "damage", f"{harm.__name__}: the server does not say that its memory is damaged"
                )
        self._remove_what_is_aside()

    async def other_model(self) -> None:
        """Give it another model: memories of the first are set aside; then the first again, with them."""
        server, keep = self.server, self.server.folder / "before"
        shutil.rmtree(keep, ignore_errors=True)
        original = server.folder / "original.gguf"

        def change() -> None:
            shutil.copytree(server.memories, keep)
            shutil.copy(server.model, original)
            data = bytearray(original.read_bytes())
            data[-1000] ^= 1
            _replace(server.model, bytes(data))
            self._log.anything_aside = True

        def change_back() -> None:
            os.replace(original, server.model)
            self._log.anything_aside = False
            for old in (*server.memories.glob("*.atlas*"), *server.sessions.glob("*.atlas*")):
                old.unlink()
            shutil.copytree(keep, server.memories, dirs_exist_ok=True)
            shutil.rmtree(keep)

        await self._keep()
        await self.end(harm=change)
        reply = await self._ask(Ask("looking", "/v1/atlas/status", method="GET"))
        if reply.status == 200 and "another model" not in (reply.document["memory_file"]["problem"] or ""):
            self.traffic.wrong("model", "another model's memory was used")
        await asyncio.sleep(self.chance.uniform(1, 4))
        await self.end(harm=change_back)
        await self._still_known()

    def _remove_what_is_aside(self) -> None:
        for one in self.server.memories.rglob("*.aside"):
            one.unlink(missing_ok=True)

    # --- what it lives through -------------------------------------------------------------------------------

    async def save_now(self) -> None:
        """Ask for everything to be saved."""
        await self._save_now()

    async def full_disk(self) -> None:
        """Leave no room on the disk for a while: whoever saves is told, all others are answered."""
        process = self.server.process
        assert process is not None
        before = self.server.shared.read_bytes() if self.server.shared.exists() else None
        with self.traffic.during("full disk"):
            self.server.disk.fill(process.pid)
            try:
                await self._saves_nothing(lambda: self.server.disk.fill(process.pid))
                await asyncio.sleep(self.chance.uniform(2, 8))
                if before is not None and self.server.shared.read_bytes()[:8] != before[:8]:
                    self.traffic.wrong("damage", "a full disk has spoilt the shared memory")
            finally:
                self.server.disk.empty(process.pid)
        await self._saves_again()

    async def read_only(self) -> None:
        """Let the folders only be read for a while."""
        folders = [self.server.memories, self.server.sessions]
        with self.traffic.during("read-only folder"):
            for one in folders:
                one.chmod(0o500)
            try:
                await self._saves_nothing()
                await asyncio.sleep(self.chance.uniform(2, 8))
            finally:
                for one in folders:
                    one.chmod(0o700)
        await self._saves_again()

    async def _saves_nothing(self, fill: Callable[[], None] = lambda: None) -> None:
        """See that whoever saves is told; ``fill`` takes the room again that somebody has made who removed a file."""
        for _ in range(TRIES):
            await self._keep()
            await asyncio.to_thread(fill)
            save = Ask("saving", "/v1/atlas/sessions/keeper/save", {}, expect={200, 507}, saves=True)
            if (await self._ask(save)).status != 200:
                return
        self.traffic.wrong("saving", f"a session was saved {TRIES} times where nothing can be")

    async def _saves_again(self) -> None:
        await self._ask(Ask("saving", "/v1/atlas/sessions/keeper/save", {}))
        await self._still_known()

    async def touch_model(self) -> None:
        """Replace the model's file by an equal one, as a download does."""
        await asyncio.to_thread(_replace, self.server.model, self.server.model.read_bytes())

    async def other_times(self) -> None:
        """Let files be from other years, as they are where a clock has jumped."""
        for path in (*self._files(), *self.server.memories.glob("*.bak")):
            moment = path.stat().st_mtime + self.chance.choice((-TEN_YEARS, TEN_YEARS))
            os.utime(path, (moment, moment))

    async def second_server(self) -> None:
        """Start another one with the same memory: it does not, and says why."""

        def start() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                self.server.command(port=1), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=START_SECONDS, env=self.server.environment(), check=False,
            )  # fmt: skip

        done = await asyncio.to_thread(start)
        said = "another server" in done.stderr and "Traceback" not in done.stderr
        if not done.returncode or not said:
            self.traffic.wrong(
                "start", f"a second server on one memory: {done.returncode}, {done.stderr[-300:]}"
            )


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    os.replace(new, path)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data), max(1, len(data) // 50)):
        data[at] ^= 1
    path.write_bytes(data)


def _garbage(path: Path) -> None:
    path.write_bytes(b"nothing of the kind" * 1000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


Deed = Callable[[Faults], Awaitable[None]]
RESTARTS: tuple[tuple[str, Deed], ...] = (
    ("kill -9", Faults.kill), ("SIGTERM", Faults.end), ("SIGINT", Faults.interrupt),
    ("damaged memory", Faults.damage), ("another model", Faults.other_model),
)  # fmt: skip
OTHERS: tuple[tuple[str, Deed], ...] = (
    ("SIGUSR1", Faults.save_now), ("full disk", Faults.full_disk), ("read-only folder", Faults.read_only),
    ("model file replaced", Faults.touch_model), ("files of other years", Faults.other_times),
    ("second server", Faults.second_server),
)  # fmt: skip


async def carry_out(faults: Faults, name: str, deed: Deed) -> None:
    """Do something to the server, and count it; a fault that fails itself is a violation, too."""
    faults.done[name] += 1
    try:
        await deed(faults)
    except Exception as error:
        faults.traffic.wrong("fault", f"{name}: {type(error).__name__}: {error}")


async def plague(
    faults: Faults, seconds: float, interval: float, restarts: float, enough: asyncio.Event
) -> None:
    """Do things to the server for some time.

    Parameters
    ----------
    faults
        What can be done.
    seconds
        How long.
    interval
        Seconds between two of them, on average.
    restarts
        Seconds in which it is restarted, too; then one life goes on to the end.
    enough
        Is set where it is to end before.
    """
    chance, server = random.Random(faults.chance.random()), faults.server
    began = perf_counter()
    if not server.obeys_permissions:
        faults.skipped["read-only folder"] = "a server of the superuser may write everywhere here"
    possible = [one for one in OTHERS if one[0] not in faults.skipped]
    to_come: list[tuple[str, Deed]] = []
    while (passed := perf_counter() - began) < seconds:
        pause = min(chance.uniform(0.5, 1.5) * interval, max(0.0, seconds - passed))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(enough.wait(), pause)
            return
        if perf_counter() - began >= seconds:
            return
        restart = perf_counter() - began < restarts
        if not to_come:  # each of them once before one comes again
            to_come = [*possible, *RESTARTS] if restart else list(possible)
            chance.shuffle(to_come)
        if server.over is not None or server.process is None:
            faults.traffic.wrong("end", f"the server has ended by itself, with {server.over}")
            await faults.again()
        name, deed = to_come.pop()
        if not restart and any(name == one for one, _ in RESTARTS):
            continue
        await carry_out(faults, name, deed)
