"""Explorers that stay open between requests, because one view of a file asks many questions about it.

The few asked last are kept. Each view has its own: one may have unlocked the file, the other not. A file that
has changed is opened again; an explorer is closed when nobody uses it any more. Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from atlas_kit.explorer.explorer import Explorer

#: Who asks for which path; then device, inode, modification time in ns, size in bytes: equal for the same content.
Identity = tuple[tuple[str, Path], tuple[int, int, int, int]]


@dataclass
class _Loan:
    """One explorer and who uses it."""

    explorer: Explorer | None = None
    passphrase: str | bytes | None = None  # of what the view saw before the file changed
    users: int = 0
    dropped: bool = False
    opening: threading.Lock = field(default_factory=threading.Lock)


class OpenExplorers:
    """At most ``limit`` open explorers, the least recently used is given up first. Safe from any thread."""

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._loans: OrderedDict[Identity, _Loan] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lend(self, path: Path, view: str = "") -> Iterator[Explorer]:
        """Give a view its explorer of the file as it is now; it stays open inside the ``with`` block.

        Raises
        ------
        OSError
            There is no such file.
        """
        identity = (view, path), _content(path)
        loan = self._take(identity)
        try:
            with loan.opening:  # others who want the same file wait here, not in front of all files
                if loan.explorer is None:
                    known = () if loan.passphrase is None else (loan.passphrase,)
                    loan.explorer = Explorer(path, *known)
            yield loan.explorer
        finally:
            self._give_back(identity, loan)

    def close(self) -> None:
        """Close what nobody uses now, and the rest as it is given back."""
        with self._lock:
            self._drop(list(self._loans))

    def _take(self, identity: Identity) -> _Loan:
        with self._lock:
            loan = self._loans.setdefault(identity, _Loan())
            self._loans.move_to_end(identity)
            loan.users += 1
            earlier = [known for known in self._loans if known[0] == identity[0] and known != identity]
            for known in earlier:  # who has unlocked the file has unlocked it as it is now
                before = self._loans[known]
                loan.passphrase = (
                    getattr(before.explorer, "passphrase", None) or before.passphrase or loan.passphrase
                )
            oldest = list(self._loans)[: max(0, len(self._loans) - self._limit)]
            self._drop([*earlier, *oldest])
            return loan

    def _give_back(self, identity: Identity, loan: _Loan) -> None:
        with self._lock:
            loan.users -= 1
            if loan.explorer is None and self._loans.get(identity) is loan:  # it could not be opened
                self._drop([identity])
            self._close_unused(loan)

    def _drop(self, identities: list[Identity]) -> None:
        for identity in identities:
            loan = self._loans.pop(identity, None)
            if loan is not None:
                loan.dropped = True
                self._close_unused(loan)

    @staticmethod
    def _close_unused(loan: _Loan) -> None:
        if loan.dropped and loan.users == 0 and loan.explorer is not None:
            loan.explorer.close()
            loan.explorer = None


def _content(path: Path) -> tuple[int, int, int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size
