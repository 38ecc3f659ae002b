"""The last choice, kept between `edgepress select` and `edgepress deploy --selected`."""

from __future__ import annotations

from pathlib import Path

import msgspec
from edgepress_protocol.errors import UsageError
from edgepress_protocol.printing import indented

from edgepress_host import durable
from edgepress_host.choice.select import Choice


class SavedChoice(msgspec.Struct, frozen=True):
    """Choices, the manifest's digest of each `variant:format` in them, and the folder that they were made from."""

    choices: tuple[Choice, ...]
    manifests: dict[str, str]
    made_unix_s: float
    folder: str | None = None


def write(path: Path, made: SavedChoice) -> None:
    """Keep a choice, in place of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, indented(made).encode())


def read(path: Path) -> SavedChoice:
    """Read the last choice. Raises UsageError where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SavedChoice)
    except FileNotFoundError as error:
        raise UsageError("nothing was chosen yet: run `edgepress select` first") from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); run `edgepress select` again") from error
