"""The host's signing key on disk: the private half of mode 0600, the public half to be given to devices."""

from __future__ import annotations

from pathlib import Path

from edgepress_protocol.errors import UsageError
from edgepress_protocol.signing import PrivateKey, PublicKey
from edgepress_protocol.topics import check_name

from edgepress_host import durable

PRIVATE_NAME = "edgepress.key"
PUBLIC_NAME = "edgepress.pub"


def init(directory: Path, name: str = "edgepress") -> PrivateKey:
    """Make a key pair in `directory` and return its private half.

    Raises:
        UsageError: a key stands there already (it is never overwritten), or the directory cannot be written.
    """
    key = PrivateKey.generate(check_name(name, "key name"))
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.write_new(directory / PRIVATE_NAME, key.to_text().encode(), mode=0o600)
        durable.write(directory / PUBLIC_NAME, key.public.to_text().encode())
    except FileExistsError as error:
        raise UsageError(f"{directory / PRIVATE_NAME} exists: a key that devices trust is never overwritten") from error
    except OSError as error:
        raise UsageError(f"cannot write a key to {directory}: {error.strerror}") from error
    return key


def load(directory: Path) -> PrivateKey:
    """Read the private key.

    Raises:
        UsageError: there is none, it is damaged, or others than its owner can read it.
    """
    path = directory / PRIVATE_NAME
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path} can be read by others: run `chmod 600 {path}`, or make a new key")
        return PrivateKey.from_text(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"no key at {path}: make one with `edgepress keys init`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the key {path}: {error}") from error


def load_public(directory: Path) -> PublicKey:
    """Read the public key.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    path = directory / PUBLIC_NAME
    try:
        return PublicKey.from_text(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"no key at {path}: make one with `edgepress keys init`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the key {path}: {error}") from error
