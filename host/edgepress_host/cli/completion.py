"""`edgepress completion`: tab completion for three shells, by click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

FILES = {
    "bash": "~/.local/share/bash-completion/completions/edgepress",
    "zsh": "a folder of your $fpath, named _edgepress",
    "fish": "~/.config/fish/completions/edgepress.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(tuple(FILES)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a completion script; put it where your shell looks for such files (mkdir -p that folder first).

    \b
    bash: edgepress completion bash > ~/.local/share/bash-completion/completions/edgepress
    zsh:  edgepress completion zsh > ~/.zfunc/_edgepress
    fish: edgepress completion fish > ~/.config/fish/completions/edgepress.fish
    """  # noqa: D301 - \b is click's mark for lines that stay apart
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "edgepress", "_EDGEPRESS_COMPLETE").source())
