"""Where the files of a data set come from: a cache folder, a Debian package, or the data set's home.

Every source is checked against the same SHA-256 before a byte of it is used. The digests are of the unpacked files,
because mirrors pack the same files with different gzip headers.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import shutil
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepress_models import debian
from edgepress_models.files import write_atomically

_DOWNLOAD_TIMEOUT_S = 20.0
_log = logging.getLogger(__name__)


class DataMissing(RuntimeError):  # noqa: N818 - it names the state of the data set
    """The data set is in none of the places; the message is one line that says what to install."""


class Unusable(ValueError):  # noqa: N818 - it names what a source gave
    """A source gave something other than the file that was asked for."""


@dataclass(frozen=True)
class Member:
    """One packed file of the data set: its name, and the length and SHA-256 of what it unpacks to."""

    name: str
    unpacked_bytes: int
    sha256: str


@dataclass(frozen=True)
class Places:
    """The places of one data set, in the order of looking: cache folder, Debian's folder, its home and its mirrors.

    `title` names the data set in messages; `advice` ends the message that none of the places has it.
    """

    title: str
    cache: Path
    home_urls: tuple[str, ...]
    advice: str
    package: debian.Package | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the files may lie on this machine."""
        return (self.cache, self.package.installed) if self.package else (self.cache,)


def cache_root(environment: Mapping[str, str]) -> Path:
    """Return the folder of all data sets: `$EDGEPRESS_DATA` where it is set, else `~/.cache/edgepress`."""
    configured = environment.get("EDGEPRESS_DATA")
    return Path(configured) if configured else Path("~/.cache/edgepress").expanduser()


def unpack(packed: bytes, member: Member) -> bytes:
    """Return the unpacked file, checked; it never unpacks more than the file's known length.

    Raises:
        Unusable: the bytes are no gzip, or unpack to another length or digest.
    """
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        content = decoder.decompress(packed, member.unpacked_bytes + 1)
    except zlib.error as error:
        raise Unusable(f"expected a gzip file, got bytes that do not unpack ({error})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != member.sha256:
        raise Unusable(
            f"expected {member.unpacked_bytes} bytes with SHA-256 {member.sha256}, got {len(content)} with {found}"
        )
    return content


def read(member: Member, places: Places) -> bytes:
    """Return the unpacked file from the first place that has it, checked; a download is kept in the cache folder.

    Raises:
        DataMissing: no place has the file.
    """
    return _first(member, places)[1]


def where(member: Member, places: Places) -> str:
    """Return the path or address of the first place that has the file, after checking it.

    Raises:
        DataMissing: no place has the file.
    """
    return _first(member, places)[0]


def fetch(members: Sequence[Member], places: Places, tools: Callable[[str], str | None] = shutil.which) -> Path:
    """Fill the cache folder without root, by apt where it works or else from the data set's home; return the folder.

    Raises:
        DataMissing: neither apt nor the home of the data set gave the files.
    """
    lacking = [member for member in members if not _has(places.cache / member.name, member)]
    reasons = []
    if lacking and places.package is not None:
        try:
            _fetch_by_apt(lacking, places.cache, places.package, tools)
        except (Unusable, debian.Failed, OSError) as error:
            _log.warning("apt did not give %s (%s); downloading", places.title, error)
            reasons.append(f"apt: {error}")
        else:
            lacking = []
    try:
        for member in lacking:
            _download(member, places)
    except (Unusable, OSError) as error:
        reasons.append(f"download: {error}")
        raise DataMissing(f"{places.title} cannot be fetched: {'; '.join(reasons)}") from error
    return places.cache


def get(url: str, longest_bytes: int) -> bytes:
    """Return what an address gives, at most `longest_bytes` of it.

    Raises:
        Unusable: the answer is broken.
        OSError: the address cannot be reached.
    """
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as response:  # noqa: S310 - our own address
            content: bytes = response.read(longest_bytes)
    except http.client.HTTPException as error:
        raise Unusable(f"expected {url}, got a broken answer ({error!r})") from error
    return content


def _first(member: Member, places: Places) -> tuple[str, bytes]:
    """Return where the file was found, and its content."""
    reasons = []
    for folder in places.folders:
        path = folder / member.name
        try:
            return str(path), unpack(path.read_bytes(), member)
        except FileNotFoundError:
            reasons.append(f"not in {folder}")
        except (Unusable, OSError) as error:
            _log.warning("%s is passed over: %s", path, error)
            reasons.append(f"{path} is unusable")
    try:
        return _download(member, places)
    except (Unusable, OSError) as error:
        reasons.append(f"download failed: {error}")
    raise DataMissing(f"{places.title}: {member.name} {', '.join(reasons)}; {places.advice}")


def _has(path: Path, member: Member) -> bool:
    try:
        unpack(path.read_bytes(), member)
    except (Unusable, OSError):
        return False
    return True


def _download(member: Member, places: Places) -> tuple[str, bytes]:
    """Return an address that gave the file, and the unpacked file, after keeping the packed one in the cache.

    Raises:
        Unusable: the last address gave something else.
        OSError: the last address cannot be reached, or the cache folder cannot be written.
    """
    *others, last = [urllib.parse.urljoin(home, member.name) for home in places.home_urls]
    for url in others:
        try:
            return url, _keep(url, member, places)
        except (Unusable, OSError) as error:
            _log.warning("%s is passed over: %s", url, error)
    return last, _keep(last, member, places)


def _keep(url: str, member: Member, places: Places) -> bytes:
    # Deflate grows no file by more than a few bytes per block, so that this holds the longest honest answer.
    packed = get(url, member.unpacked_bytes + 4096)
    content = unpack(packed, member)
    write_atomically(places.cache / member.name, packed)
    return content


def _fetch_by_apt(
    members: Sequence[Member], cache: Path, package: debian.Package, tools: Callable[[str], str | None]
) -> None:
    """Copy the files, checked, out of the Debian package into the cache.

    Raises:
        Unusable: a file is not what it should be.
        debian.Failed: a tool is missing or fails, or the package lacks a file.
    """
    for name, packed in debian.files(package, [member.name for member in members], tools).items():
        unpack(packed, next(member for member in members if member.name == name))
        write_atomically(cache / name, packed)
