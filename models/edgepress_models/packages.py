"""Files out of packages without installing them: a tool downloads the package, a temporary folder takes its files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Failed(RuntimeError):  # noqa: N818 - it names what happened
    """The package, or a file of it, cannot be had."""


class Package(Protocol):
    """A package that carries files of a data set."""

    @property
    def name(self) -> str:
        """What the package is called."""

    @property
    def installed(self) -> Path | None:
        """The folder of the files where the package is installed, None where it is not."""

    def files(self, names: Iterable[str], tools: Callable[[str], str | None]) -> dict[str, bytes]:
        """Return the named files of the package. `tools` finds programs, as shutil.which does. Raises Failed."""


@dataclass(frozen=True)
class Debian:
    """A Debian package, the folder that it fills, and the root of the file system that it is installed in."""

    name: str
    folder: Path
    root: Path = Path("/")

    @property
    def installed(self) -> Path:
        """Where the files are after the installation, whether or not it was done."""
        return self.root / self.folder

    def files(self, names: Iterable[str], tools: Callable[[str], str | None]) -> dict[str, bytes]:
        """Return the named files of the package's folder.

        Raises:
            Failed: a tool is missing or fails, or the package lacks a file.
        """
        apt_get, dpkg_deb = tools("apt-get"), tools("dpkg-deb")
        if apt_get is None or dpkg_deb is None:
            raise Failed("apt-get and dpkg-deb are not both installed")
        with tempfile.TemporaryDirectory(prefix="edgepress-") as temporary:
            work = Path(temporary)
            _run([apt_get, "download", "--quiet", self.name], work)
            found = _only(work.glob(f"{self.name}_*.deb"), self.name)
            _run([dpkg_deb, "-x", str(found), "unpacked"], work)
            try:
                return {name: (work / "unpacked" / self.folder / name).read_bytes() for name in names}
            except FileNotFoundError as error:
                raise Failed(f"the package {found.name} has no {error.filename}") from error


@dataclass(frozen=True)
class Wheel:
    """A Python package, its version, and the folder in it; its own requirements are not needed for its files."""

    name: str
    version: str
    folder: Path

    @property
    def installed(self) -> Path | None:
        """Where the files are, found without an import, if the package is installed."""
        found = importlib.util.find_spec(self.name)
        return Path(found.origin).parent / self.folder if found and found.origin else None

    def files(self, names: Iterable[str], tools: Callable[[str], str | None]) -> dict[str, bytes]:  # noqa: ARG002
        """Return the named files of the package's folder, by this Python's pip.

        Raises:
            Failed: pip is missing or fails, or the package lacks a file.
        """
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        with tempfile.TemporaryDirectory(prefix="edgepress-") as temporary:
            work = Path(temporary)
            _run([sys.executable, "-m", "pip", "download", *options, f"{self.name}=={self.version}"], work)
            found = _only(work.glob("*.whl"), self.name)
            try:
                with zipfile.ZipFile(found) as archive:
                    return {name: archive.read(f"{self.name}/{self.folder.as_posix()}/{name}") for name in names}
            except (KeyError, zipfile.BadZipFile) as error:
                raise Failed(f"the package {found.name} lacks a file: {error}") from error


def _only(found: Iterable[Path], name: str) -> Path:
    files = list(found)
    if len(files) != 1:
        raise Failed(f"expected one file of the package {name}, got {len(files)}")
    return files[0]


def _run(command: list[str], folder: Path) -> None:
    # apt warns when its sandbox user cannot write the folder; it is harmless, and only shown when the command fails.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaint = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise Failed(f"`{' '.join(command)}` ended with {done.returncode}: {complaint}")
