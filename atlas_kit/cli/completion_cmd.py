"""``atlas-tool completion``."""

from __future__ import annotations

import sys

import click

from atlas_kit.cli._options import command_


@command_(
    "completion",
    """\
Print the script that makes a shell complete commands, options and file names.

Load it in the shell's start-up file; the Tab key then completes commands, options and
file names.

Examples:
  eval "$(atlas-tool completion bash)"     # in ~/.bashrc
  eval "$(atlas-tool completion zsh)"      # in ~/.zshrc
  atlas-tool completion fish > ~/.config/fish/completions/atlas-tool.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Run the command."""
    from click.shell_completion import get_completion_class

    from atlas_kit.cli._group import group

    completion = get_completion_class(shell)
    assert completion is not None
    # the template alone: source() would first run bash to learn its version
    script = completion(group, {}, "atlas-tool", "_ATLAS_TOOL_COMPLETE")
    sys.stdout.write(script.source_template % script.source_vars())
    return 0
