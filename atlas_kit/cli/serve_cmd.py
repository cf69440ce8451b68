"""``atlas-tool serve``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli._options import FILE, command_
from atlas_kit.server.config import table
from atlas_kit.server.config_rows import Row

if TYPE_CHECKING:
    from atlas_kit.server.config import ServerConfig


def _settings_options(function: Any) -> Any:
    """Add an option for each setting of a server."""
    for row in reversed(table()):
        function = _option(row)(function)
    return function


def _option(row: Row) -> Any:
    """Return the option of a setting; it stays None where nobody gives it."""
    kind: Any = click.Choice(row.choices) if row.choices else row.kind
    names = [_dashed(word) for word in row.words]
    default = "on" if row.default is True else "off" if row.default is False else row.default
    stated = (
        default not in (None, "", ()) and "[default" not in row.help and (row.kind is not bool or row.off)
    )
    text = row.help + (f"  [default: {default}]" if stated else "")
    if row.kind is bool:
        switch = f"{names[0]}/{_dashed(row.off[0])}" if row.off else names[0]
        return click.option(switch, *names[1:], row.name, default=None, help=text, is_flag=True)
    return click.option(
        *names, row.name, type=kind, default=None, multiple=row.many, metavar=row.metavar or None, help=text
    )


def _dashed(word: str) -> str:
    """Return a setting's name as an option; llama-server has short ones of several letters, such as ``-ngl``."""
    is_short = (len(word) <= 3 and "-" not in word) or word == "cram"
    return f"-{word}" if is_short else f"--{word}"


@command_(
    "serve",
    """\
Serve a model over HTTP, with a memory that outlives a restart.

Clients of OpenAI's API work with it unchanged. --atlas puts a memory beside every conversation; a request that names a
session ("atlas": {"session_id": "anna"}) goes on with that one. With --atlas-memory-persist, all requests without a
session share a memory, which is loaded at the start and saved at the end and every five minutes.

llama-server's usual options and variables work here. SIGTERM and Ctrl-C end it when the memory is saved; SIGUSR1 saves
now.

Examples:
  atlas-tool serve -m sample_data/models/tiny-python.gguf --atlas-memory-file served.atlas --port 8080
""",
)
@click.argument("given_model", required=False, metavar="[MODEL]")
@_settings_options
@click.option(
    "--config", "config_file", type=FILE, metavar="FILE", help="Read settings from this JSON or TOML file."
)
def command(given_model: str | None, config_file: str | None, **options: Any) -> int:
    """Run the command."""
    from atlas_kit.llama.blas_threads import one_thread_from_the_start
    from atlas_kit.server.loading import Loading
    from atlas_kit.server.logs import set_up

    given = {name: value for name, value in options.items() if value not in (None, ())}
    if given_model is not None:
        given.setdefault("model", given_model)
    config = _configuration(given, config_file)
    set_up(config, sys.stderr)
    with one_thread_from_the_start():
        loading = Loading(config)  # llama.cpp does not need Python, which imports the server meanwhile
        from atlas_kit.server.run import serve

    serve(config, loading=loading)
    return 0


def _configuration(options: dict[str, Any], file: str | None) -> ServerConfig:
    from atlas_kit.errors import InvalidParamError
    from atlas_kit.server.config import ServerConfig

    config = ServerConfig.from_sources(options, file=file, environment=os.environ)
    if not config.model:
        raise InvalidParamError("no model is named", key="model", hint="Name it: atlas-tool serve -m MODEL")
    return config
