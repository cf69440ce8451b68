"""``atlas-tool run``."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _remedies, _render
from atlas_kit.cli._model_options import (
    MODEL,
    Abandoned,
    Stopping,
    force_option,
    memory_file_help,
    model_options,
    open_model,
    save_session,
)
from atlas_kit.cli._options import FILE, atlas_settings_options, backup_option, command_, keys_options
from atlas_kit.episodes import Kind
from atlas_kit.errors import AtlasError, InvalidParamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from atlas_kit.llama.asking import Answer
    from atlas_kit.llama.chat import ChatTemplate
    from atlas_kit.llama.sampling import Sampling
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.steps import Token
    from atlas_kit.persistence.place import Place

HELP = """\
/help                      this list
/stats                     what was read, and what the memory has
/save [FILE]               save the memory (without FILE: where --memory-file says)
/load FILE                 continue with the memory in FILE
/recall [auto|off|always]  what was read again for the last answer, and why; or how it is done from now on
/reset [context|memory]    empty one of them; both if none is named
/quit                      leave (or the end of the file, or Ctrl-C on an empty line)
A line that ends with \\ goes on; a space before / makes it text. Ctrl-C stops an answer."""


def _sampling_options(function: Any) -> Any:
    """Add the options that say how tokens are chosen."""
    options = (
        click.option(
            "--max-tokens", type=click.IntRange(-1), default=512, show_default=True, metavar="N",
            help="Length of an answer; -1: until the model ends it.",
        ),
        click.option("--temperature", type=float, metavar="X", help="0 takes the likeliest.  [default: 0.8]"),
        click.option("--top-k", type=int, metavar="N", help="Only the N likeliest; 0: all.  [default: 40]"),
        click.option(
            "--top-p", type=float, metavar="X", help="Only the likeliest of X together.  [default: 0.95]"
        ),
        click.option(
            "--min-p", type=float, metavar="X",
            help="Only those X times as likely as the likeliest.  [default: 0.05]",
        ),
        click.option(
            "--repeat-penalty", type=float, metavar="X",
            help="Make what came lately less likely; 1: no.  [default: 1]",
        ),
        click.option("--seed", type=int, metavar="N", help="Of the random numbers.  [default: any]"),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
        click.option(
            "--grammar-file", type=FILE, metavar="FILE", help="Write only what this grammar (GBNF) allows."
        ),
        click.option(
            "--json-schema", metavar="FILE|JSON", help="Write only JSON that this schema allows; {} allows any."
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@command_(
    "run",
    """\
Generate text, with a memory that learns while it reads.

MODEL is any GGUF model of text. With -p or -f it answers once and prints nothing but the answer; without, it reads
one line after the other (/help lists what else can be typed). --atlas puts a memory beside the model, which learns
whatever is read and written and knows it when it has left the context; --memory-file keeps it. An ATLAS-native model
asks for a memory by itself. Statistics and notes go to standard error.

A chat template that the model carries is used: then prompts are messages. --no-chat continues plain text.

The memory is saved at the end, whole or not at all, also after Ctrl-C and errors.

Examples:
  atlas-tool run sample_data/models/tiny-python.gguf -p "def main(" --no-chat --max-tokens 40 --seed 1
  atlas-tool run sample_data/models/tiny-python.gguf -f sample_data/text/chat.txt -m chat.atlas --max-tokens 20
  echo /stats | atlas-tool run sample_data/models/tiny-python.gguf --atlas
""",
)
@click.argument("model", type=MODEL)
@click.option("-p", "--prompt", metavar="TEXT", help="Answer this.")
@click.option("-f", "--file", "prompt_file", type=FILE, metavar="FILE", help="Answer the text in FILE.")
@click.option("--atlas/--no-atlas", default=None, help="Put a memory beside the model, or none.")
@click.option("--atlas-auto", is_flag=True, help="Put the memory beside it that `recommend` suggests.")
@click.option("-m", "--memory-file", type=click.Path(), metavar="F", help=memory_file_help)
@click.option("--read-only", is_flag=True, help="The memory answers; nothing changes it.")
@click.option(
    "--continue",
    "go_on",
    is_flag=True,
    help="Continue the context that was saved in F, and save it again.",
)
@click.option("--system", metavar="TEXT", help="What the chat starts with.")
@click.option("--no-chat", is_flag=True, help="Continue plain text, even if the model has a chat template.")
@_sampling_options
@atlas_settings_options
@model_options
@backup_option
@force_option
@click.option("-q", "--quiet", is_flag=True, help="No notes and no statistics.")
@keys_options
def command(model: str, prompt: str | None, prompt_file: str | None, quiet: bool, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.persistence.place import Place

    _check(prompt, prompt_file, options)
    file, place = options["memory_file"], None
    if file is not None and not options["read_only"]:
        place = Place(file, model, options["keys"])
        place.require_encrypted()
    sampling = _sampling(options)
    if prompt_file is not None:
        from atlas_kit.operations.learn import Document

        prompt = Document(prompt_file).text()
    if prompt is not None and not prompt and not options["go_on"]:
        raise InvalidParamError("the prompt is empty", path=prompt_file, key="prompt", hint="Give some text.")
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(open_model(model, options["engine_options"], quiet=quiet))
        session = stack.enter_context(_open(engine, options))
        stop = stack.enter_context(Stopping())
        talk = _Talk(session, stop, sampling, options, quiet, place)
        with talk.kept():
            if prompt is None:
                talk.interactive()
            else:
                talk.once(prompt)
        if not quiet and prompt is not None:
            if not sys.stdout.isatty():  # the answer has not ended its line, and both may go to one place
                sys.stderr.write("\n")
            _render.note(statistics(session))
        stop.raise_if_asked()
    return 0


def _check(prompt: str | None, prompt_file: str | None, options: dict[str, Any]) -> None:
    """Refuse what contradicts itself."""
    off = options["atlas"] is False
    wanted = options["atlas_auto"] or options["memory_file"] or options["chosen"]
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give --prompt or --file, not both")
    if off and wanted:
        raise click.UsageError("--no-atlas cannot be combined with a memory or its settings")
    if options["no_chat"] and options["system"]:
        raise click.UsageError("--system cannot be combined with --no-chat")
    if options["go_on"] and not options["memory_file"]:
        raise click.UsageError("--continue needs --memory-file")
    if options["grammar_file"] and options["json_schema"]:
        raise click.UsageError("give --grammar-file or --json-schema, not both")


def _sampling(options: dict[str, Any]) -> Sampling:
    from atlas_kit.llama.sampling import Sampling
    from atlas_kit.operations.learn import Document

    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
    values = {name: options[name] for name in names if options[name] is not None}
    if options["grammar_file"]:
        values["grammar"] = Document(options["grammar_file"]).text()
    schema = options["json_schema"]
    if schema is not None:
        values["json_schema"] = schema if schema.lstrip()[:1] == "{" else Document(schema).text()
    sampling = Sampling(**values)
    _ = sampling.schema_text  # says now whether it is JSON
    return sampling


def _open(engine: Any, options: dict[str, Any]) -> AtlasSession:
    from atlas_kit.llama.open_session import open_session

    chosen = options["chosen"]
    return open_session(
        engine,
        "auto" if options["atlas_auto"] else options["atlas"],
        file=options["memory_file"],
        config=chosen.over() if chosen.config is not None else None,
        changes=chosen.values,
        device=options["device"],
        learn=not options["read_only"],
        context=options["go_on"],
        force=options["force"],
        keys=options["keys"],
    )


class _Talk:
    """A session with somebody: reads, answers, obeys, and keeps the memory."""

    def __init__(
        self, session: AtlasSession, stop: Stopping, sampling: Sampling, options: dict[str, Any], quiet: bool,
        place: Place | None,
    ) -> None:  # fmt: skip
        self.session, self.stop, self.quiet, self._place = session, stop, quiet, place
        self._sampling, self._options = sampling, options
        self._template = self._chat()
        self._changed = False
        self._mode: str | None = None  # of recalling, where it is not the memory's own
        self._last: Answer | None = None
        self._places: list[str] = []  # of what it was given, not said yet

    def _chat(self) -> ChatTemplate | None:
        has = self.session.engine.info.chat_template is not None
        if self._options["system"] and not has:
            raise InvalidParamError(
                "the model has no chat template, so --system has no place", path=self.session.engine.info.path
            )
        if self._options["no_chat"] or not has:
            return None
        from atlas_kit.llama.chat import ChatTemplate

        return ChatTemplate(self.session.engine)

    # --- answering -----------------------------------------------------------------------------------------

    def once(self, prompt: str) -> None:
        """Answer one prompt."""
        self._answer(prompt)
        if sys.stdout.isatty():
            sys.stdout.write("\n")
        self._name_sources()

    def _name_sources(self) -> None:
        """Say from where the last answer is, on lines of their own behind it."""
        places, self._places = self._places, []
        if places and not self.quiet:
            sys.stdout.flush()
            for place in places:
                _render.note(f"[from {place}]")

    def _answer(self, prompt: str) -> None:
        """Read a prompt and write what follows, until it ends or somebody stops it."""
        limit = self._options["max_tokens"]
        if self._template is not None and prompt and self.session.episodes is not None:
            self._ask(prompt, None if limit < 0 else limit)
            return
        if not self._read(prompt):
            return
        answer = self.session.generate(
            max_tokens=None if limit < 0 else limit, stop=self._options["stop"], sampling=self._sampling
        )
        write = _render.safely if sys.stdout.isatty() else sys.stdout.write
        with contextlib.closing(answer):  # type: ignore[type-var]
            for token in answer:
                self._changed = True
                write(token.text)
                sys.stdout.flush()
                if self.stop():
                    break

    def _ask(self, prompt: str, limit: int | None) -> None:
        """Answer what somebody says in a chat, with what the memory has about it."""
        from atlas_kit.llama.asking import ask
        from atlas_kit.llama.recalling import recall_of

        write = _render.safely if sys.stdout.isatty() else sys.stdout.write

        def told(token: Token) -> None:
            write(token.text)
            sys.stdout.flush()

        memory, self._changed = self.session.memory, True
        changes = {} if self._mode is None else {"mode": self._mode}
        self._last = ask(
            self.session, prompt, told=told, until=self.stop, max_tokens=limit, template=self._template,
            stop=self._options["stop"], sampling=self._sampling, system=self._options["system"],
            recall=recall_of(None if memory is None else memory.settings, **changes),
        )  # fmt: skip
        self._places = [] if self._last is None else [piece.place for piece in self._last.pieces]

    def _read(self, prompt: str) -> bool:
        """Read a prompt in pieces, so that it can be stopped; tell whether it was read to its end."""
        session = self.session
        tokens = self._tokens(prompt)
        for at in range(0, len(tokens), session.engine.n_batch):
            if self.stop():
                return False
            self._changed = True
            session.feed(tokens[at : at + session.engine.n_batch], score=False, kind=Kind.USER)
        return True

    def _tokens(self, prompt: str) -> list[int]:
        session = self.session
        if not prompt:
            return []
        if self._template is None:
            return session.engine.tokenize(prompt)
        system = self._options["system"]
        if session.context_tokens:
            return self._template.following(prompt, system)
        messages = [{"role": "user", "content": prompt}]
        return self._template.tokens(
            [*([{"role": "system", "content": system}] if system else []), *messages]
        )

    # --- the interactive form ------------------------------------------------------------------------------

    def interactive(self) -> None:
        """Answer line after line, until the end of the file or ``/quit``."""
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
        if sys.stdin.isatty() and not self.quiet:
            _render.note(f"{self.session.engine.info.name}: /help lists what can be typed")
        for line in self._lines():
            if line.startswith("/"):
                if not self._obey(*line[1:].split(maxsplit=1)):
                    return
                continue
            try:
                started = self._template is None and bool(self.session.context_tokens)
                self._answer(f"\n{line}" if started else line)
            except AtlasError as error:
                _render.note(f"error: {_remedies.sentence(error)}")
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._name_sources()
            self._keep_text()
            if self.stop.count > 1:
                return
        if sys.stdin.isatty():
            sys.stdout.write("\n")

    def _lines(self) -> Iterator[str]:
        """Yield what is typed, a line that ends with a backslash together with the next."""
        held = ""
        while (line := self._line("... " if held else "> ")) is not None:
            if line.endswith("\\"):
                held += line[:-1] + "\n"
                continue
            text, held = held + line, ""
            if text.strip():
                yield text
        if held.strip():
            yield held

    def _line(self, question: str) -> str | None:
        """Return a line; None at the end of the file, or when somebody wants to leave."""
        sys.stdout.flush()
        while True:
            try:
                with self.stop.waiting():
                    line = _ask(question)
                self.stop.count = 0
            except EOFError:
                self.stop.count = 0
                return None
            except KeyboardInterrupt:
                self.stop.count = 0
                if _typed():
                    sys.stdout.write("\n")
                    continue
                return None
            return line

    def _obey(self, name: str = "", argument: str = "") -> bool:
        """Carry out a slash command; False to leave."""
        command = _COMMANDS.get(name)
        try:
            if command is None:
                _render.note(f"there is no /{name}; /help lists what there is")
                return True
            return command(self, argument.strip()) is not False
        except AtlasError as error:
            _render.note(f"error: {_remedies.sentence(error)}")
            return True

    def _help(self, _: str) -> None:
        _render.show([_render.Lines(HELP.splitlines())])

    def _recall(self, argument: str) -> None:
        from atlas_kit.cli.ask_cmd import piece_lines
        from atlas_kit.settings.atlas_settings import RECALLS

        if self.session.episodes is None:
            raise InvalidParamError("nothing is kept that could be recalled", hint="Start with --atlas.")
        if argument:
            if argument not in RECALLS:
                raise InvalidParamError(f"/recall can be {', '.join(RECALLS)}, not {argument}")
            self._mode = argument
            _render.show([f"recall is {argument} now"])
            return
        stored = f"{len(self.session.episodes):,} tokens of text are kept"
        if self._last is None:
            _render.show([f"{stored}; nothing was asked yet"])
            return
        lines: list[str | _render.Styled] = [f"{stored}; for the last answer: {self._last.recalled.reason}"]
        for piece in self._last.recalled.candidates or self._last.pieces:
            lines += piece_lines(piece, taken=any(piece.start == one.start for one in self._last.pieces))
        _render.show([_render.Lines(lines)])

    def _stats(self, _: str) -> None:
        _render.show([_render.Facts(list(facts(self.session)))])

    def _save(self, argument: str) -> None:
        from atlas_kit.persistence.place import Place

        place = self._place
        if argument and argument != self._options["memory_file"]:
            place = Place(argument, self.session.engine.info.path, self._options["keys"])
        if place is None:
            raise InvalidParamError("there is no --memory-file to write to", hint="Say where: /save FILE")
        self._write(place)
        _render.show([f"saved {place.file}"])

    def _load(self, argument: str) -> None:
        from atlas_kit.llama.open_session import load

        if not argument:
            raise InvalidParamError("which file?", hint="/load FILE")
        load(self.session, argument, context=True, force=self._options["force"], keys=self._options["keys"])
        self._changed = True
        _render.show([f"loaded {argument}"])

    def _reset(self, argument: str) -> None:
        if argument not in ("", "context", "memory"):
            raise InvalidParamError(f"/reset empties context or memory, not {argument}")
        if argument != "context" and self.session.memory is not None:
            if self._options["read_only"]:
                raise InvalidParamError("the memory is read-only", hint="/reset context empties the other.")
            self.session.memory.reset()
            self._changed = True
        if argument != "memory":
            self.session.forget_context()
        _render.show([f"{argument or 'context and memory'} emptied"])

    def _quit(self, _: str) -> bool:
        return False

    def _keep_text(self) -> None:
        """Append what was said to the memory's file, in case the machine stops; failures are told at the end."""
        session = self.session
        if self._place is not None and session.episodes is not None and len(session.episodes):
            with contextlib.suppress(AtlasError):
                self._place.save_episodes(session.episodes.arrays(), session.engine.info.identity)

    # --- saving the memory ---------------------------------------------------------------------------------

    def _write(self, place: Place) -> None:
        options = self._options
        save_session(
            place, self.session, context=options["go_on"], backup=options["backup"], force=options["force"]
        )
        self._changed = self._changed and place is not self._place

    def _keep(self) -> None:
        """Save what changed, if it is to be kept."""
        if self._place is not None and self._changed:
            self._write(self._place)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Save the memory at the end, however it comes; but not what was left half done."""
        try:
            yield
        except Abandoned:
            if self._changed and self._place is not None:
                _render.note(f"the memory was not saved: {self._place.file} is as it was")
            raise
        except (AtlasError, OSError, KeyboardInterrupt):  # all of them come between two steps
            try:
                self._keep()
            except AtlasError as error:
                _render.note(f"the memory was not saved: {_remedies.sentence(error)}")
            raise
        self._keep()


_COMMANDS: dict[str, Callable[[_Talk, str], bool | None]] = {
    "help": _Talk._help,
    "recall": _Talk._recall,
    "stats": _Talk._stats,
    "save": _Talk._save,
    "load": _Talk._load,
    "reset": _Talk._reset,
    "quit": _Talk._quit,
}


def _ask(question: str) -> str:
    """Return one line of standard input, with editing on a terminal."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (input() uses it once it is imported)
        return input(question)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _typed() -> bool:
    """Tell whether something stands on the line that Ctrl-C was pressed on."""
    readline = sys.modules.get("readline")
    return readline is not None and bool(readline.get_line_buffer())


# --- statistics ------------------------------------------------------------------------------------------


def facts(session: AtlasSession) -> Iterator[tuple[str, object]]:
    """Yield what a session has done, and what its memory holds."""
    stats = session.stats
    yield "model", stats["model"]
    yield "read", _counted(stats["tokens_read"], stats["read_per_second"])
    yield "generated", _counted(stats["tokens_generated"], stats["generated_per_second"])
    yield (
        "context",
        f"{stats['context']:,} of {stats['n_ctx']:,} tokens, rolled over {stats['rollovers']:,} times",
    )
    memory = stats["memory"]
    if memory is None:
        yield "memory", "none"
        return
    seen = f"{memory['tokens_seen']:,} tokens seen, {memory['tokens_learned']:,} learned"
    yield "memory", f"{seen}, {_render.size(memory['state_bytes'])}"
    yield "window", f"{memory['window']:,} of {memory['window_size']:,} tokens"
    if stats["loss"] is not None:
        yield "loss", f"{stats['loss_model']:.3f} nats a token alone, {stats['loss']:.3f} with the memory"


def statistics(session: AtlasSession) -> str:
    """Return the same in one line."""
    return "; ".join(f"{name} {value}" for name, value in facts(session) if name not in ("model", "window"))


def _counted(count: int, speed: float | None) -> str:
    return f"{count:,} tokens" + (f" ({speed:,.0f}/s)" if speed else "")
