"""Ed25519 (RFC 8032) over what a device must be able to trust: its `want`, and manifests.

The purpose goes into the signed bytes, so that a signed manifest can never be passed off as a `want`.
Keys are text: one line `edgepress-ed25519-public BASE64 name`, and the same with `private`.
"""

from __future__ import annotations

import base64
import binascii
from typing import Literal

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from edgepress_protocol.errors import Rejected, UsageError
from edgepress_protocol.messages import Signed

Purpose = Literal["want", "manifest"]


class PrivateKey:
    """The host's signing key."""

    def __init__(self, seed: bytes, name: str) -> None:
        self._key = SigningKey(seed)
        self.name = name

    @staticmethod
    def generate(name: str) -> PrivateKey:
        """Make a new key from the system's randomness."""
        return PrivateKey(bytes(SigningKey.generate()), name)

    @property
    def public(self) -> PublicKey:
        """The key that devices are given."""
        return PublicKey(bytes(self._key.verify_key), self.name)

    def sign(self, purpose: Purpose, payload: bytes) -> Signed:
        """Sign `payload` for one purpose."""
        return Signed(payload, self._key.sign(_bound(purpose, payload)).signature)

    def to_text(self) -> str:
        """One line, to be kept in a file of mode 0600."""
        return _line("private", bytes(self._key), self.name)

    @staticmethod
    def from_text(text: str) -> PrivateKey:
        """Read the line that `to_text` wrote.

        Raises:
            UsageError: it is no private key.
        """
        return PrivateKey(*_parse("private", text))


class PublicKey:
    """The key that a device trusts."""

    def __init__(self, raw: bytes, name: str) -> None:
        self._key = VerifyKey(raw)
        self.name = name

    def verify(self, purpose: Purpose, signed: Signed) -> bytes:
        """Return the payload of an envelope that this key's owner signed for `purpose`.

        Raises:
            Rejected: another key signed it, for another purpose, or the bytes were altered.
        """
        try:
            self._key.verify(_bound(purpose, signed.payload), signed.signature)
        except BadSignatureError as error:
            raise Rejected(f"{purpose} is not signed by the trusted key {self.name!r}") from error
        return signed.payload

    def to_text(self) -> str:
        """One line, to be given to every device."""
        return _line("public", bytes(self._key), self.name)

    @staticmethod
    def from_text(text: str) -> PublicKey:
        """Read the line that `to_text` wrote.

        Raises:
            UsageError: it is no public key.
        """
        return PublicKey(*_parse("public", text))


def _bound(purpose: Purpose, payload: bytes) -> bytes:
    return b"edgepress/" + purpose.encode() + b"\0" + payload


def _line(half: str, raw: bytes, name: str) -> str:
    return f"edgepress-ed25519-{half} {base64.b64encode(raw).decode()} {name}\n"


def _parse(half: str, text: str) -> tuple[bytes, str]:
    expected = f"expected one line 'edgepress-ed25519-{half} BASE64 NAME', made by `edgepress keys init`"
    words = text.split()
    if len(words) != 3:
        raise UsageError(f"not a {half} key: {expected}")
    if words[0] != f"edgepress-ed25519-{half}":
        raise UsageError(f"not a {half} key but {words[0]!r}: {expected}")
    try:
        raw = base64.b64decode(words[1], validate=True)
    except binascii.Error as error:
        raise UsageError(f"damaged {half} key ({error}): {expected}") from error
    if len(raw) != 32:
        raise UsageError(f"damaged {half} key of {len(raw)} bytes: {expected}")
    return raw, words[2]
