"""An engine that says what a test wants: for formats of answers, which a model of random weights would not hit."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from atlas_kit.llama import FakeEngine
from atlas_kit.llama.fake_engine import END

CHATML = (
    "{%- if tools %}{{ '<|im_start|>system\n# Tools\n<tool_call>' }}{% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls %}{{ '<tool_call>' }}{{ call.function | tojson }}{{ '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


#: The number of the first control token.
FIRST = END + 1


class ScriptedEngine(FakeEngine):
    """Says ``scripts`` one after the other, then the last one again; follows no grammar, but remembers it.

    ``names`` are its control tokens, behind the end token; texts of the scripts may hold them.
    """

    def __init__(
        self,
        *scripts: str,
        template: str | None = CHATML,
        names: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
        infill: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**{"n_ctx": 4096, "n_batch": 512, **options})
        self.names, self.scripts, self._infill = list(names), list(scripts), infill
        self.samplings: list[Any] = []
        random = np.random.default_rng(1)
        more = random.standard_normal((len(self.names), self.info.n_embd)).astype(np.float32)
        self._embedding = np.concatenate((self._embedding, more))
        self._matrix = np.concatenate((self._matrix, more / np.sqrt(self.info.n_embd)))
        self.info = dataclasses.replace(self.info, chat_template=template, n_vocab=FIRST + len(self.names))

    @property
    def infill_tokens(self) -> Any:
        """Those of the fake engine, or none."""
        return super().infill_tokens if self._infill else None

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return bytes, and control tokens by their names."""
        if not special or not self.names:
            return super().tokenize(text)
        tokens: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, self.names)) + ")", text):
            known = part in self.names
            tokens += [FIRST + self.names.index(part)] if known else super().tokenize(part)
        return tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's byte, or its name."""
        if token >= FIRST:
            return self.names[token - FIRST].encode() if special else b""
        return super().piece(token, special=special)

    def sampler(self, sampling: Any) -> Any:
        """Return a sampler that says the next script; one that is closed before it is asked gives it back."""
        last = len(self.scripts) == 1
        script = self.scripts[0] if last else self.scripts.pop(0)
        self.samplings.append(sampling)

        def give_back() -> None:
            self.samplings[:] = [one for one in self.samplings if one is not sampling]
            if not last:
                self.scripts.insert(0, script)

        return _Script([*self.tokenize(script, special=True), END], give_back)

    def shown(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, control tokens in square brackets."""
        return b"".join(
            b"[" + self.names[token - FIRST].encode() + b"]" if token >= FIRST else self.piece(token)
            for token in tokens
        ).decode()


class ObligingEngine(ScriptedEngine):
    """Calls the tool that it is offered, the right way; where it has a result, or no such tool, it says something.

    Parameters
    ----------
    calls
        Names of tools, with what they are called with.
    says
        What it says to a prompt that has a word in it; ``"It is so."`` to others.
    """

    def __init__(
        self, calls: Mapping[str, Mapping[str, Any]], says: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__("It is so.", **options)
        self._calls, self._says, self._read = dict(calls), dict(says or {}), [""]

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Remember the parts of a prompt, the first of which begins with a control token."""
        if special and text.startswith(self.names[0]):
            self._read = []
        self._read.append(text)
        return super().tokenize(text, special=special)

    def sampler(self, sampling: Any) -> Any:
        """Return a sampler that says what the prompt asks for."""
        offered = [name for name in self._calls if json.dumps(name) in self._read[0]]
        read = "".join(self._read)
        self.scripts = [next((said for word, said in self._says.items() if word in read), "It is so.")]
        if offered and not any(part.startswith("tool\n") for part in self._read):
            call = json.dumps({"name": offered[0], "arguments": self._calls[offered[0]]}, ensure_ascii=False)
            self.scripts = [f"<tool_call>\n{call}\n</tool_call>"]
        return super().sampler(sampling)


class _Script:
    def __init__(self, tokens: list[int], give_back: Callable[[], None]) -> None:
        self._tokens, self.candidates, self.few = tokens, [], 0
        self._unused: Callable[[], None] | None = give_back

    def sample(self, logits: Any, index: int | None = None) -> int:
        self._unused = None
        if logits.max() == 0 and (logits < -1e8).sum() == len(logits) - 1:  # there is no choice
            return int(logits.argmax())
        return self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]

    def accept(self, tokens: Any) -> None:
        """Nothing is followed."""

    def close(self) -> None:
        if self._unused is not None:
            self._unused()
            self._unused = None
