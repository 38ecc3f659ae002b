"""`edgepress keys`: the key that signs what devices are told."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from edgepress_host.cli._shared import Settings, json_option, pass_settings, print_json, say


class KeyFiles(msgspec.Struct, frozen=True):
    """Where the key pair is. The private half is never printed."""

    name: str
    private_key_file: str
    public_key_file: str
    public_key: str


keys_dir_option = click.option(
    "--keys",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of the key pair.  [default: DATA-DIR/keys]",
)


@click.group()
def command() -> None:
    """Make or show the key that signs what devices are told."""


@command.command()
@click.option("--name", default="edgepress", show_default=True, help="Name written into the key.")
@keys_dir_option
@json_option
@pass_settings
def init(settings: Settings, name: str, directory: Path | None, as_json: bool) -> None:
    """Make a key pair; an existing one is never overwritten."""
    from edgepress_host import keys

    keys.init(directory or settings.keys_dir, name)
    _print(directory or settings.keys_dir, as_json)


@command.command()
@keys_dir_option
@json_option
@pass_settings
def show(settings: Settings, directory: Path | None, as_json: bool) -> None:
    """Print the public key, for the devices' --trust."""
    _print(directory or settings.keys_dir, as_json)


def _print(directory: Path, as_json: bool) -> None:
    from edgepress_host import keys

    public = keys.load_public(directory)
    files = KeyFiles(
        name=public.name,
        private_key_file=str(directory / keys.PRIVATE_NAME),
        public_key_file=str(directory / keys.PUBLIC_NAME),
        public_key=public.to_text().strip(),
    )
    if as_json:
        print_json(files)
        return
    click.echo(files.public_key)
    say(f"private key: {files.private_key_file} (keep it)")
    say(f"public key:  {files.public_key_file} (give it to every device: edgepress-agent run --trust …)")
