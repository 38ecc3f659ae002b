"""Where the four files of Fashion-MNIST come from: a cache folder, a Debian package, or the data set's home.

Every source is checked against the same SHA-256 before a byte of it is used. The digests are of the unpacked files,
because Debian and the home of the data set pack the same files with different gzip headers.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepress_models.files import write_atomically

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HOME_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

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


IMAGES = {
    "train": Member(
        "train-images-idx3-ubyte.gz",
        47_040_016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "test": Member(
        "t10k-images-idx3-ubyte.gz",
        7_840_016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
}
LABELS = {
    "train": Member(
        "train-labels-idx1-ubyte.gz",
        60_008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "test": Member(
        "t10k-labels-idx1-ubyte.gz",
        10_008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
MEMBERS = (*IMAGES.values(), *LABELS.values())


@dataclass(frozen=True)
class Places:
    """The places to look in, in this order: cache folder, Debian's folder, home of the data set."""

    cache: Path
    debian: Path = DEBIAN_FOLDER
    home_url: str = HOME_URL

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Places:
        """Return the usual places; `$EDGEPRESS_DATA`, where set, replaces `~/.cache/edgepress` for the cache."""
        configured = environment.get("EDGEPRESS_DATA")
        root = Path(configured) if configured else Path("~/.cache/edgepress").expanduser()
        return cls(cache=root / "fashion-mnist")


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


def fetch(places: Places, tools: Callable[[str], str | None] = shutil.which) -> Path:
    """Fill the cache folder without root, by apt where it works or else from the data set's home; return the folder.

    Raises:
        DataMissing: neither apt nor the home of the data set gave the files.
    """
    lacking = [member for member in MEMBERS if not _has(places.cache / member.name, member)]
    if not lacking:
        return places.cache
    try:
        _fetch_by_apt(lacking, places.cache, tools)
    except (Unusable, OSError) as apt_error:
        _log.warning("apt did not give Fashion-MNIST (%s); downloading from %s", apt_error, places.home_url)
        try:
            for member in lacking:
                _download(member, places)
        except (Unusable, OSError) as error:
            raise DataMissing(f"Fashion-MNIST cannot be fetched: apt: {apt_error}; download: {error}") from error
    return places.cache


def _first(member: Member, places: Places) -> tuple[str, bytes]:
    """Return where the file was found, and its content."""
    reasons = []
    for folder in (places.cache, places.debian):
        path = folder / member.name
        try:
            return str(path), unpack(path.read_bytes(), member)
        except FileNotFoundError:
            reasons.append(f"not in {folder}")
        except (Unusable, OSError) as error:
            _log.warning("%s is passed over: %s", path, error)
            reasons.append(f"{path} is unusable")
    try:
        return places.home_url + member.name, _download(member, places)
    except (Unusable, OSError) as error:
        reasons.append(f"download failed: {error}")
    raise DataMissing(
        f"Fashion-MNIST: {member.name} {', '.join(reasons)}; run `apt-get install {DEBIAN_PACKAGE}`, "
        "or without root `python -m edgepress_models.fashion_mnist fetch`"
    )


def _has(path: Path, member: Member) -> bool:
    try:
        unpack(path.read_bytes(), member)
    except (Unusable, OSError):
        return False
    return True


def _download(member: Member, places: Places) -> bytes:
    """Return the unpacked file from the data set's home, after keeping the packed one in the cache.

    Raises:
        Unusable: the address gave something else.
        OSError: the address cannot be reached, or the cache folder cannot be written.
    """
    url = urllib.parse.urljoin(places.home_url, member.name)
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as response:  # noqa: S310 - our own address
            # Deflate grows no file by more than a few bytes per block, so that this holds the longest honest answer.
            packed = response.read(member.unpacked_bytes + 4096)
    except http.client.HTTPException as error:
        raise Unusable(f"expected {url}, got a broken answer ({error!r})") from error
    content = unpack(packed, member)
    write_atomically(places.cache / member.name, packed)
    return content


def _fetch_by_apt(members: list[Member], cache: Path, tools: Callable[[str], str | None]) -> None:
    """Download the Debian package, unpack it in a temporary folder, and copy the checked files into the cache.

    Raises:
        Unusable: a tool is missing, fails, or the package lacks a file.
    """
    apt_get, dpkg_deb = tools("apt-get"), tools("dpkg-deb")
    if apt_get is None or dpkg_deb is None:
        raise Unusable("apt-get and dpkg-deb are not both installed")
    with tempfile.TemporaryDirectory(prefix="edgepress-") as name:
        work = Path(name)
        _run([apt_get, "download", "--quiet", DEBIAN_PACKAGE], work)
        packages = list(work.glob(f"{DEBIAN_PACKAGE}_*.deb"))
        if len(packages) != 1:
            raise Unusable(f"expected one {DEBIAN_PACKAGE} package from apt-get download, got {len(packages)}")
        _run([dpkg_deb, "-x", str(packages[0]), "unpacked"], work)
        folder = work / "unpacked" / DEBIAN_FOLDER.relative_to("/")
        for member in members:
            try:
                packed = (folder / member.name).read_bytes()
            except FileNotFoundError as error:
                raise Unusable(f"the package {packages[0].name} has no {member.name}") from error
            unpack(packed, member)
            write_atomically(cache / member.name, packed)


def _run(command: list[str], folder: Path) -> None:
    # apt warns when its sandbox user cannot write the folder; it is harmless, and only shown when the command fails.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaint = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise Unusable(f"`{' '.join(command)}` ended with {done.returncode}: {complaint}")
