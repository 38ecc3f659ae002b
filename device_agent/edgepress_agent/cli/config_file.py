"""`--config FILE`: the options of a command out of a TOML file, each key an option's name with `_` for `-`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from edgepress_protocol.errors import UsageError

from edgepress_agent._compat import load_toml

DEFAULT_CONFIG = Path("/etc/edgepress/agent.toml")
_ITSELF = "config"


def config_option(command: Any) -> Any:
    """Give a command the option `--config`; what stands on the command line wins over the file."""
    return click.option(
        "--config",
        _ITSELF,
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_take_defaults,
        help="TOML file with these options, '_' for '-': state_dir = \"…\".",
    )(command)


def read_config(path: Path, command: click.Command) -> dict[str, Any]:
    """Read the values of a command's options, by the names of its parameters.

    A relative path is one from the file's own folder. Hidden options are none of the file's.

    Raises:
        UsageError: it cannot be read, a key is unknown, or a value is not what its option takes.
    """
    try:
        found = load_toml(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--config {path}: not a TOML file: {error}") from error
    options = options_of(command)
    for key in found:
        if key not in options:
            raise UsageError(f"--config {path}: unknown key {key!r}{_nearest(key, options)}")
    values = {}
    for key, value in found.items():
        option = options[key]
        try:
            values[str(option.name)] = _checked(option, value, path.absolute().parent)
        except click.BadParameter as error:
            raise UsageError(f"--config {path}: {key}: {error.message}") from error
    return values


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Return what may stand in the file, by key."""
    return {
        option.opts[0].removeprefix("--").replace("-", "_"): option
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and option.name != _ITSELF
    }


def _take_defaults(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.default_map = read_config(path, context.command)


def _checked(option: click.Option, value: object, folder: Path) -> Any:
    if option.multiple:
        if not isinstance(value, list):
            raise click.BadParameter(f"expected a list of strings, got {value!r}")
        return [_checked_one(option, one, folder) for one in value]
    return _checked_one(option, value, folder)


def _checked_one(option: click.Option, value: object, folder: Path) -> Any:
    expected: tuple[type, ...] = (str,)
    if isinstance(option.type, click.types.IntParamType):
        expected = (int,)
    elif isinstance(option.type, click.types.FloatParamType):
        expected = (int, float)
    if not isinstance(value, expected) or isinstance(value, bool):
        wanted = {str: "a string", int: "a whole number"}.get(expected[0] if len(expected) == 1 else float, "a number")
        raise click.BadParameter(f"expected {wanted}, got {value!r}")
    if isinstance(option.type, click.Path):
        return str(folder / str(value))
    return option.type.convert(value, option, None)


def _nearest(key: str, options: dict[str, click.Option]) -> str:
    if key == "password":
        return "; write the password alone into a file, and its path as password_file"
    import difflib

    close = difflib.get_close_matches(key, options, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(options))}"
