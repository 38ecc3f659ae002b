"""What a `want` must be before the agent obeys it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgepress_protocol.errors import Rejected
from edgepress_protocol.manifest import Blob, Manifest, digest
from edgepress_protocol.messages import Signed, Trial, Want, decode_signed, decode_to_device
from edgepress_protocol.signing import PublicKey
from edgepress_protocol.version import SPOKEN, negotiate


@dataclass(frozen=True)
class Wanted:
    """An accepted `want` with its manifests opened, by the SHA-256 of their payloads."""

    want: Want
    manifests: dict[str, Manifest] = field(default_factory=dict)
    signed: dict[str, Signed] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def manifest(self, sha256: str) -> Manifest:
        """Return one manifest.

        Raises:
            Rejected: the `want` does not carry it, or the trusted key did not sign it.
        """
        if sha256 in self.manifests:
            return self.manifests[sha256]
        raise Rejected(self.refused.get(sha256, f"manifest {sha256[:12]}… did not come with the want"))


def open_want(data: bytes, trusted: PublicKey, fleet: str, device: str) -> Wanted:
    """Verify and decode a `want`, in this order: signature, form, addressee, protocol version, manifests.

    Raises:
        Rejected: it is not to be obeyed; the line says why. A bad manifest alone is kept in `refused`.
    """
    message = decode_to_device(trusted.verify("want", decode_signed(data)))
    if not isinstance(message, Want):
        raise Rejected(f"a {type(message).__name__} stands where a want belongs")
    if (message.fleet, message.device) != (fleet, device):
        raise Rejected(f"the want is for {message.device!r} in fleet {message.fleet!r}, not for this device")
    negotiate(SPOKEN, (message.protocol, message.protocol))
    return _with_manifests(message, trusted)


def open_manifest(signed: Signed, trusted: PublicKey) -> Manifest:
    """Verify and decode one manifest.

    Raises:
        Rejected: the trusted key did not sign it, or it is no manifest.
    """
    message = decode_to_device(trusted.verify("manifest", signed))
    if not isinstance(message, Manifest):
        raise Rejected(f"a {type(message).__name__} stands where a manifest belongs")
    return message


def blobs_of(manifest: Manifest) -> tuple[Blob, ...]:
    """Blobs that a variant needs on the device."""
    return (manifest.model,) + ((manifest.golden.blob,) if manifest.golden else ())


def blobs_of_trial(trial: Trial, manifest: Manifest) -> tuple[Blob, ...]:
    """Blobs that a trial of a variant needs on the device."""
    return blobs_of(manifest) + ((trial.evaluation.blob,) if trial.evaluation else ())


def _with_manifests(want: Want, trusted: PublicKey) -> Wanted:
    wanted = Wanted(want)
    for signed in want.manifests:
        name = digest(signed.payload)
        try:
            wanted.manifests[name] = open_manifest(signed, trusted)
            wanted.signed[name] = signed
        except Rejected as error:
            wanted.refused[name] = str(error)
    return wanted
