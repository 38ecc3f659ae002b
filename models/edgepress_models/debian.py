"""Files out of a Debian package, without root: apt downloads it and dpkg unpacks it in a temporary folder."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


class Failed(RuntimeError):  # noqa: N818 - it names what happened
    """The package, or a file of it, cannot be had."""


@dataclass(frozen=True)
class Package:
    """A package, the folder that it fills, and the root of the file system that it is installed in."""

    name: str
    folder: Path
    root: Path = Path("/")

    @property
    def installed(self) -> Path:
        """Where the files are after the installation."""
        return self.root / self.folder


def files(package: Package, names: Iterable[str], tools: Callable[[str], str | None]) -> dict[str, bytes]:
    """Return the named files of the package's folder; `tools` finds programs, as shutil.which does.

    Raises:
        Failed: a tool is missing or fails, or the package lacks a file.
    """
    apt_get, dpkg_deb = tools("apt-get"), tools("dpkg-deb")
    if apt_get is None or dpkg_deb is None:
        raise Failed("apt-get and dpkg-deb are not both installed")
    with tempfile.TemporaryDirectory(prefix="edgepress-") as temporary:
        work = Path(temporary)
        _run([apt_get, "download", "--quiet", package.name], work)
        found = list(work.glob(f"{package.name}_*.deb"))
        if len(found) != 1:
            raise Failed(f"expected one {package.name} package from apt-get download, got {len(found)}")
        _run([dpkg_deb, "-x", str(found[0]), "unpacked"], work)
        folder = work / "unpacked" / package.folder
        contents = {}
        for name in names:
            try:
                contents[name] = (folder / name).read_bytes()
            except FileNotFoundError as error:
                raise Failed(f"the package {found[0].name} has no {name}") from error
        return contents


def _run(command: list[str], folder: Path) -> None:
    # apt warns when its sandbox user cannot write the folder; it is harmless, and only shown when the command fails.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        complaint = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise Failed(f"`{' '.join(command)}` ended with {done.returncode}: {complaint}")
