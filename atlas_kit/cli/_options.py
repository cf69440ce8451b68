"""Options that several commands share, each said once, and how ``-`` becomes standard input."""

from __future__ import annotations

import inspect
import os
import stat
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from atlas_kit.settings.atlas_settings import AtlasSettings, SettingRow
    from atlas_kit.storage.given import Given
    from atlas_kit.storage.keys import Keys


class HelpfulCommand(click.Command):
    """A command whose help keeps the lines of blocks that start with a word and a colon (``Examples:``)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        blocks = inspect.cleandoc(options.pop("help", None) or "").split("\n\n")
        text = "\n\n".join(f"\b\n{b}" if b.split("\n")[0].endswith(":") else b for b in blocks)
        options["help"] = text
        super().__init__(*args, **options)


class TakesNumbers(HelpfulCommand):
    """A command whose arguments may be negative numbers, which otherwise look like options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let numbers be arguments, and still refuse options that do not exist."""
        before = args[: args.index("--")] if "--" in args else args
        if any(map(_is_negative, before)):
            ctx.ignore_unknown_options = True
            names = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
            takes = {name for param in self.params if _takes_value(param) for name in param.opts}
            names |= set(ctx.help_option_names)
            for last, word in zip(["", *before], before, strict=False):
                option = word.partition("=")[0]
                is_option = word[:1] == "-" != word and not _is_negative(word) and last not in takes
                if is_option and option not in names:
                    raise click.NoSuchOption(option, possibilities=sorted(names), ctx=ctx)
        return super().parse_args(ctx, args)


def _takes_value(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and not param.is_flag and not param.count


def _is_negative(word: str) -> bool:
    return word[:1] == "-" and word[1:2] != "-" and isinstance(_number(word), (int, float))


#: How wide help may be, and both names of its option.
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def command_(
    name: str, text: str, cls: type[HelpfulCommand] = HelpfulCommand
) -> Callable[[Callable[..., Any]], click.Command]:
    """Return the decorator that makes a function the command ``name`` with the help ``text``."""
    return click.command(name, cls=cls, help=text, context_settings=CONTEXT)


F = TypeVar("F", bound="Callable[..., Any]")

#: A path that may be ``-``. Existence is left to the library, whose errors say more.
FILE = click.Path(allow_dash=True)


class _InPlace(click.Path):
    """A file that the command changes, so that standard input cannot be meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-":
            self.fail("a file is changed in place, and standard input is not a file (a file named - is ./-)")
        return super().convert(value, param, ctx)


IN_PLACE = _InPlace()


def changed(file: str, output: str | None, dry_run: bool = False) -> Given:
    """Return the file that a command changes: in place, or where the result goes elsewhere standard input as well."""
    if output is not None or (dry_run and file == "-"):
        return given(file)
    return str(IN_PLACE.convert(file, None, None))


class _Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes, with a unit that counts in thousands (K, M, G, T) or in 1,024s (KiB ...)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from atlas_kit.codecs.quantities import parse_size

        found = parse_size(value)
        if found is None:
            self.fail(f"{value!r} is not a size such as 2G, 500M or 1.5GiB", param, ctx)
        return found


SIZE = _Size()

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
new_option = click.option(
    "--new", is_flag=True, help="Create FILE if it does not exist, even if its name does not end in .atlas."
)
remove_backups_option = click.option(
    "--remove-backups",
    is_flag=True,
    help="Remove the file's backups, which can be read without the new secret.",
)
decrypt_option = click.option(
    "--decrypt", is_flag=True, help="Write OUTPUT unencrypted; otherwise what is encrypted stays encrypted."
)


class LongOption(click.Option):
    """An option whose short form stays for scripts and is shown nowhere: elsewhere it means something else."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the line of the help, without the short form."""
        every, self.opts = self.opts, [one for one in self.opts if one.startswith("--")]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = every


dry_run_option = click.option(
    "-n", "--dry-run", is_flag=True, help="Change nothing; show what would be done."
)
words_option = click.option(
    "-m", "--model", cls=LongOption, type=click.Path(), metavar="MODEL",
    help="The model whose tokens the memory holds.",
)  # fmt: skip
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite OUTPUT when it exists.")
#: Of commands that have ``words_option`` as well.
force_words_option = click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Overwrite OUTPUT when it exists; accept a MODEL that is not the memory's.",
)
one_shard_option = click.option(
    "--one-shard", is_flag=True, help="Of a split model, look at this one file only."
)


def quiet_option(function: F) -> F:
    """Add ``-q/--quiet`` to a command that changes something: of what went well, nothing is said."""

    @click.option("-q", "--quiet", is_flag=True, help="Print only warnings and errors.")
    @wraps(function)
    def wrapper(*args: Any, quiet: bool, **kwargs: Any) -> Any:
        from atlas_kit.cli import _render

        with _render.quietly(quiet):
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def backup_option(function: F) -> F:
    """Add ``--backup`` and ``--backups N``; the command receives as ``backup`` how many are kept, 0 for none."""

    @click.option(
        "--backup",
        is_flag=True,
        help="Keep the previous file as NAME.bak, and older ones with their dates (see `recover`).",
    )
    @click.option(
        "--backups",
        type=click.IntRange(1),
        metavar="N",
        help="The same, but keep only the newest N backups.",
    )
    @wraps(function)
    def wrapper(*args: Any, backup: bool, backups: int | None, **kwargs: Any) -> Any:
        from atlas_kit.storage.backup_files import ALL

        return function(*args, backup=backups or (ALL if backup else 0), **kwargs)

    return wrapper  # type: ignore[return-value]


def output_option(help_text: str, *, required: bool = False) -> Callable[[F], F]:
    """Return the option ``-o/--output``."""
    return click.option("-o", "--output", type=FILE, required=required, metavar="OUTPUT", help=help_text)


def codec_options(function: F) -> F:
    """Add ``--codec``, ``--level`` and ``--no-shuffle``."""
    function = click.option(
        "--no-shuffle", is_flag=True, help="Do not group the bytes of numbers before coding them."
    )(function)
    function = click.option("--level", type=int, help="How hard to try; the range depends on the codec.")(
        function
    )
    return click.option(
        "--codec", type=click.Choice(["lz4", "zlib", "zstd", "none"]), help="How to code payloads."
    )(function)


def keys_options(function: F) -> F:
    """Add ``--passphrase-file`` and ``--key-file``; the command receives them as ``keys``."""

    @click.option(
        "--passphrase-file",
        type=FILE,
        metavar="F",
        help="Read the passphrase of an encrypted file from the first line of F.",
    )
    @click.option(
        "--key-file", type=FILE, metavar="F", help="Read the raw 32-byte key of an encrypted file from F."
    )
    @wraps(function)
    def wrapper(*args: Any, passphrase_file: str | None, key_file: str | None, **kwargs: Any) -> Any:
        _keep_secrets((passphrase_file, key_file), kwargs)
        return function(*args, keys=read_keys(passphrase_file, key_file), **kwargs)

    return wrapper  # type: ignore[return-value]


def several_keys_options(function: F) -> F:
    """The same for a command that reads several files: each option may be given several times."""
    from atlas_kit.errors import WrongKeyError

    @click.option(
        "--passphrase-file",
        "passphrase_files",
        multiple=True,
        type=FILE,
        metavar="F",
        help="Read a passphrase from the first line of F; one option for each passphrase.",
    )
    @click.option(
        "--key-file",
        "key_files",
        multiple=True,
        type=FILE,
        metavar="F",
        help="Read a raw 32-byte key from F; one option for each key.",
    )
    @wraps(function)
    def wrapper(
        *args: Any, passphrase_files: tuple[str, ...], key_files: tuple[str, ...], **kwargs: Any
    ) -> Any:
        one_stdin(*passphrase_files, *key_files)
        _keep_secrets((*passphrase_files, *key_files), kwargs)
        read = [read_keys(one, None) for one in passphrase_files] + [
            read_keys(None, one) for one in key_files
        ]
        first, *others = read or [read_keys(None, None)]
        first.others += others
        try:
            return function(*args, keys=first, **kwargs)
        except WrongKeyError as error:
            if error.hint is None and error.remedy is None:
                error.hint = "Give --passphrase-file or --key-file once for each secret that the files have."
            raise

    return wrapper  # type: ignore[return-value]


def new_keys_options(function: F) -> F:
    """Add ``--new-passphrase-file`` and ``--new-key-file``; the command receives them as ``new_keys``, or None."""

    @click.option(
        "--new-passphrase-file",
        type=FILE,
        metavar="F",
        help="Encrypt with the passphrase in the first line of F.",
    )
    @click.option("--new-key-file", type=FILE, metavar="F", help="Encrypt with the raw 32-byte key in F.")
    @wraps(function)
    def wrapper(*args: Any, new_passphrase_file: str | None, new_key_file: str | None, **kwargs: Any) -> Any:
        if new_passphrase_file and new_key_file:
            raise click.UsageError("give --new-passphrase-file or --new-key-file, not both")
        new = (new_passphrase_file, new_key_file)
        _keep_secrets(new, kwargs)
        return function(*args, new_keys=read_keys(*new) if any(new) else None, **kwargs)

    return wrapper  # type: ignore[return-value]


def _keep_secrets(files: Iterable[str | None], parameters: Mapping[str, Any]) -> None:
    """Refuse an output that would overwrite the only copy of a passphrase or key."""
    from atlas_kit.errors import InvalidParamError
    from atlas_kit.storage.given import same_file

    for output in filter(None, (parameters.get("output"), parameters.get("dst"))):
        if os.path.isfile(output) and any(same_file(output, file) for file in files if file):
            raise InvalidParamError("the output is the file of the passphrase or key", path=output)


def read_keys(passphrase_file: str | None, key_file: str | None) -> Keys:
    """Collect what opens encrypted files: options, then ``ATLAS_PASSPHRASE``, then a question.

    The question is asked only when a file turns out to need it, and only on a terminal.
    """
    from atlas_kit.storage.keys import Keys, key_from_file, passphrase_from_file

    if passphrase_file and key_file:
        raise click.UsageError("give --passphrase-file or --key-file, not both")
    if key_file:
        return Keys(key=key_from_file(key_file))
    if passphrase_file:
        return Keys(passphrase=passphrase_from_file(passphrase_file))
    value = os.environ.get("ATLAS_PASSPHRASE")
    if value:
        return Keys(passphrase=os.fsencode(value), ambient=True)
    return Keys(ask=terminal_question())


def terminal_question() -> Callable[[str, bool], bytes] | None:
    """Return what asks for a passphrase on the terminal, or None where there is no terminal."""
    return _ask if sys.stdin.isatty() and sys.stderr.isatty() else None


def _ask(question: str, confirm: bool) -> bytes:
    """Ask for a passphrase on the terminal, without showing it, until there is one; ``confirm``: twice the same."""

    def hidden(text: str) -> str:
        return str(click.prompt(text, default="", show_default=False, hide_input=True, err=True))

    while True:
        answer = hidden(question)
        if not answer:
            click.echo("A passphrase has at least one character. Try again, or stop with Ctrl-C.", err=True)
        elif confirm and hidden("The same again") != answer:
            click.echo("The two passphrases are not the same. Enter the new one again.", err=True)
        else:
            return answer.encode("utf-8", "surrogateescape")


# --- the settings of a memory --------------------------------------------------------------------------


class ChosenSettings:
    """What of a memory's settings somebody chose: single options, and a file for all others.

    False where nothing was chosen. ``values`` are checked one by one; ``over`` checks that they fit together.
    """

    def __init__(self, values: Mapping[str, Any], config: str | None = None) -> None:
        self.values = dict(values)
        self.config = config

    def __bool__(self) -> bool:
        return bool(self.values) or self.config is not None

    def over(self, base: AtlasSettings | None = None) -> AtlasSettings:
        """Return all settings: options first, then the file (with defaults), and without a file ``base``.

        Raises
        ------
        InvalidParamError
            For a file that holds something else, and for settings that do not fit together.
        """
        from atlas_kit.settings.atlas_settings import AtlasSettings

        if self.config is not None:
            base = AtlasSettings.from_file("/dev/stdin" if self.config == "-" else self.config)
        return (base or AtlasSettings()).replace(**self.values)


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic only in new versions of click


class _Setting(_ParamType):
    """The value of one setting; what it may be is said by its row."""

    def __init__(self, row: SettingRow) -> None:
        self.row = row
        self.name = "text" if row.least is None else "integer" if isinstance(row.default, int) else "number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the choices, or what a number is called."""
        number = "" if self.row.least is None else "N" if isinstance(self.row.default, int) else "X"
        return "|".join(filter(None, (number, *self.row.choices)))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value in the setting's type, or say what it may be."""
        from atlas_kit.errors import InvalidParamError

        if isinstance(value, str) and value not in self.row.choices:
            value = _number(value)
        try:
            return self.row.check(value)
        except InvalidParamError:
            self.fail(f"{value!r} is not {self.row.range}", param, ctx)


def _number(text: str) -> int | float | str:
    """Return the number that a text is, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _setting_option(row: SettingRow) -> Callable[[F], F]:
    """Return the option of one setting; None stands for what nobody chose."""
    note = row.note.rstrip(".")
    help_text = f"{note[:1].upper()}{note[1:]}."
    if isinstance(row.default, bool):
        names = f"{row.option}/--no-{row.option[2:]}"
        shown = "on" if row.default else "off"
        return click.option(names, row.name, default=None, help=f"{help_text}  [default: {shown}]")
    allowed = f"; {row.range}" if row.least is not None else ""
    return click.option(
        row.option, row.name, type=_Setting(row), help=f"{help_text}  [default: {row.default}{allowed}]"
    )


def atlas_settings_options(function: F) -> F:
    """Add an option for each setting of a memory, and ``--config``; the command receives them as ``chosen``.

    ``chosen`` is a ``ChosenSettings``, so that a command can tell what was chosen from what is left to a
    recommendation, a model or a memory file.
    """
    from atlas_kit.settings.atlas_settings import settings_table

    rows = settings_table()

    @wraps(function)
    def wrapper(*args: Any, config: str | None, **kwargs: Any) -> Any:
        values = {row.name: kwargs.pop(row.name) for row in rows}
        values = {name: value for name, value in values.items() if value is not None}
        return function(*args, chosen=ChosenSettings(values, config), **kwargs)

    decorated: Any = click.option(
        "--config", type=FILE, metavar="FILE", help="Take all settings that are not options from a JSON file."
    )(wrapper)
    for row in reversed(rows):
        decorated = _setting_option(row)(decorated)
    return decorated  # type: ignore[no-any-return]


def one_stdin(*files: str) -> None:
    """Refuse more than one ``-``: standard input can be read only once."""
    if sum(file == "-" for file in files) > 1:
        raise click.UsageError("standard input can be only one of the files")


def is_standard_output(output: str) -> bool:
    """Tell whether an output is standard output, as ``-`` or by another name that it has."""
    if output in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        return True
    try:
        info = os.stat(output)
        return stat.S_ISFIFO(info.st_mode) and os.path.samestat(info, os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def read_value(value: str | None, source: str | None) -> bytes:
    """Return the value that was given as an argument or with ``--from``; ``-`` is standard input."""
    if (value is None) == (source is None):
        raise click.UsageError("give the value as VALUE or with --from")
    if value == "-" or source == "-":
        return sys.stdin.buffer.read()
    if source is not None:
        from atlas_kit.storage.given import open_source

        with open_source(source) as opened:
            return opened.read(0, opened.size)
    return (value or "").encode("utf-8", "surrogateescape")


def place_of(output: str | None) -> Any:
    """Return where an output goes: its path, or the stream that is standard output."""
    return sys.stdout.buffer if output is not None and is_standard_output(output) else output


def given(path: str) -> Given:
    """Return the path, or everything on standard input (``-``) or in a pipe, which can be read only once."""
    if path == "-":
        return sys.stdin.buffer.read()
    from atlas_kit.storage.source import BytesSource

    data = _read_once(path)
    return BytesSource(data, path) if data else path  # called by its path still


def _read_once(path: str) -> bytes:
    """Return what a pipe, a device or a file below ``/proc`` holds: their size says nothing, and may be 0."""
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_size):
            return b""
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
            if (stat.S_ISCHR(info.st_mode) and not stream.isatty()) or stat.S_ISBLK(info.st_mode):
                return b""  # it may never end
            if stat.S_ISFIFO(info.st_mode):  # without a writer it is empty; with one, wait for what comes
                os.set_blocking(stream.fileno(), True)
            return stream.read() or b""
    except (OSError, ValueError):
        return b""  # whoever opens the path says what is wrong with it
