"""Where the files of a data set come from: a cache folder, a package, or the data set's home.

Every source is checked against the same SHA-256 before a byte of it is used. The digests are of what the files hold,
because mirrors pack the same content in different ways.
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
from typing import Protocol, TypeVar

from edgepress_models import packages
from edgepress_models.files import write_atomically
from edgepress_models.packages import Package

_DOWNLOAD_TIMEOUT_S = 20.0
Content_co = TypeVar("Content_co", covariant=True)
_log = logging.getLogger(__name__)


class DataMissing(RuntimeError):  # noqa: N818 - it names the state of the data set
    """The data set is in none of the places; the message is one line that says what to install."""


class Unusable(ValueError):  # noqa: N818 - it names what a source gave
    """A source gave something other than the file that was asked for."""


class Member(Protocol[Content_co]):
    """One file of a data set, as its sources keep it, and how it is checked."""

    @property
    def name(self) -> str:
        """The name of the file in every source."""

    @property
    def longest_bytes(self) -> int:
        """More than this no honest source gives."""

    def unpack(self, packed: bytes) -> Content_co:
        """Return what the file holds, checked. Raises Unusable."""


@dataclass(frozen=True)
class Gzip:
    """A gzip file: its name, and the length and SHA-256 of what it unpacks to."""

    name: str
    unpacked_bytes: int
    sha256: str

    @property
    def longest_bytes(self) -> int:
        """Deflate grows no file by more than a few bytes per block, so that this holds the longest honest answer."""
        return self.unpacked_bytes + 4096

    def unpack(self, packed: bytes) -> bytes:
        """Return the unpacked file, checked; it never unpacks more than the file's known length.

        Raises:
            Unusable: the bytes are no gzip, or unpack to another length or digest.
        """
        content = gunzip(packed, self.unpacked_bytes + 1)
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise Unusable(
                f"expected {self.unpacked_bytes} bytes with SHA-256 {self.sha256}, got {len(content)} with {found}"
            )
        return content


def gunzip(packed: bytes, longest_bytes: int) -> bytes:
    """Return at most `longest_bytes` of what gzip packed.

    Raises:
        Unusable: the bytes are no gzip.
    """
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        return decoder.decompress(packed, longest_bytes)
    except zlib.error as error:
        raise Unusable(f"expected a gzip file, got bytes that do not unpack ({error})") from error


@dataclass(frozen=True)
class Places:
    """The places of one data set, in the order of looking: cache folder, installed package, its home and mirrors.

    `title` names the data set in messages; `advice` ends the message that none of the places has it.
    """

    title: str
    cache: Path
    home_urls: tuple[str, ...]
    advice: str
    package: Package | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the files may lie on this machine."""
        installed = self.package.installed if self.package else None
        return (self.cache, installed) if installed else (self.cache,)


def cache_root(environment: Mapping[str, str]) -> Path:
    """Return the folder of all data sets: `$EDGEPRESS_DATA` where it is set, else `~/.cache/edgepress`."""
    configured = environment.get("EDGEPRESS_DATA")
    return Path(configured) if configured else Path("~/.cache/edgepress").expanduser()


def read(member: Member[Content_co], places: Places) -> Content_co:
    """Return what the file holds, from the first place that has it, checked; a download is kept in the cache folder.

    Raises:
        DataMissing: no place has the file.
    """
    return _first(member, places)[1]


def where(member: Member[object], places: Places) -> str:
    """Return the path or address of the first place that has the file, after checking it.

    Raises:
        DataMissing: no place has the file.
    """
    return _first(member, places)[0]


def fetch(members: Sequence[Member[object]], places: Places, tools: Callable[[str], str | None] = shutil.which) -> Path:
    """Fill the cache folder without root, from the package or else from the data set's home; return the folder.

    Raises:
        DataMissing: neither the package nor the home of the data set gave the files.
    """
    lacking = [member for member in members if not _has(places.cache / member.name, member)]
    reasons = []
    if lacking and places.package is not None:
        try:
            _fetch_package(lacking, places.cache, places.package, tools)
        except (Unusable, packages.Failed, OSError) as error:
            _log.warning("%s did not come from a package: %s", places.title, error)
            reasons.append(f"package: {error}")
        else:
            lacking = []
    if not places.home_urls and lacking:
        raise DataMissing(f"{places.title} cannot be fetched: {'; '.join(reasons)}")
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


def _first(member: Member[Content_co], places: Places) -> tuple[str, Content_co]:
    """Return where the file was found, and what it holds."""
    reasons = []
    for folder in places.folders:
        path = folder / member.name
        try:
            return str(path), member.unpack(path.read_bytes())
        except FileNotFoundError:
            reasons.append(f"not in {folder}")
        except (Unusable, OSError) as error:
            _log.warning("%s is passed over: %s", path, error)
            reasons.append(f"{path} is unusable")
    if places.home_urls:
        try:
            return _download(member, places)
        except (Unusable, OSError) as error:
            reasons.append(f"download failed: {error}")
    raise DataMissing(f"{places.title}: {member.name} {', '.join(reasons)}; {places.advice}")


def _has(path: Path, member: Member[object]) -> bool:
    try:
        member.unpack(path.read_bytes())
    except (Unusable, OSError):
        return False
    return True


def _download(member: Member[Content_co], places: Places) -> tuple[str, Content_co]:
    """Return an address that gave the file, and what it holds, after keeping the file in the cache.

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


def _keep(url: str, member: Member[Content_co], places: Places) -> Content_co:
    packed = get(url, member.longest_bytes)
    content = member.unpack(packed)
    write_atomically(places.cache / member.name, packed)
    return content


def _fetch_package(
    members: Sequence[Member[object]], cache: Path, package: Package, tools: Callable[[str], str | None]
) -> None:
    """Copy the files, checked, out of the package into the cache.

    Raises:
        Unusable: a file is not what it should be.
        packages.Failed: a tool is missing or fails, or the package lacks a file.
    """
    contents = package.files([member.name for member in members], tools)
    for member in members:
        member.unpack(contents[member.name])
        write_atomically(cache / member.name, contents[member.name])
