"""Builds edgepress-agent_VERSION_ARCH.deb: the agent and its runtimes in an environment of their own, /opt/edgepress.

`python deploy/deb/build.py [--arch arm64] [--out dist]` with Python 3.11, the Python of Debian bookworm; needs pip,
hatchling and dpkg-deb. Wheels are taken for the board's processor, so either package is built on either machine.
"""

from __future__ import annotations

import argparse
import compileall
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PREFIX = Path("opt/edgepress")
PYTHON = "3.11"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's names of processors, and those of wheels."""

_NOT_ON_A_BOARD = ("edgepress_host", "edgepress_models")
_WHEELS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014", "manylinux_2_5")


def build(arch: str, out: Path, extras: str = "agent") -> Path:
    """Build the package for one processor, and return its path."""
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(f"Python {PYTHON} is needed, the one of bookworm, not {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        wheel = build_wheel(Path(folder))
        version = wheel.name.split("-")[1]
        site = tree / PREFIX / "lib" / f"python{PYTHON}" / "site-packages"
        install(wheel, extras, MACHINES[arch], site)
        make_environment(tree / PREFIX)
        document(tree)
        settle_times(tree)
        compile_all(site)
        control(tree, arch, version)
        out.mkdir(parents=True, exist_ok=True)
        package = out / f"edgepress-agent_{version}_{arch}.deb"
        run("dpkg-deb", "--root-owner-group", "-Zzstd", "--build", str(tree), str(package))
    return package


def build_wheel(folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, extras: str, machine: str, site: Path) -> None:
    """Put the agent, its runtimes and what they need into site-packages, as wheels of the board's processor."""
    platforms = [word for kind in _WHEELS for word in ("--platform", f"{kind}_{machine}")]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON, "--target", str(site)]
    run(*pip, *target, *platforms, f"edgepress{f'[{extras}]' if extras else ''} @ {wheel.as_uri()}")
    for name in _NOT_ON_A_BOARD:
        shutil.rmtree(site / name)
    shutil.rmtree(site / "bin", ignore_errors=True)  # pip's scripts, which name this machine's Python
    # What a wheel brings for its own tests is no use on a board.
    for tests in [path for path in site.rglob("tests") if path.is_dir()]:
        shutil.rmtree(tests)


def make_environment(prefix: Path) -> None:
    """Lay out what `python3 -m venv` would: it is done by hand, for another machine's processor."""
    (prefix / "bin").mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n")
    for name in ("python", "python3", f"python{PYTHON}"):
        (prefix / "bin" / name).symlink_to(f"/usr/bin/python{PYTHON}")
    script = prefix / "bin" / "edgepress-agent"
    script.write_text(
        f"#!/{PREFIX}/bin/python\nimport sys\n\nfrom edgepress_agent.cli import main\n\nsys.exit(main())\n"
    )
    script.chmod(0o755)


def document(tree: Path) -> None:
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/edgepress-agent").symlink_to(f"/{PREFIX}/bin/edgepress-agent")
    doc = tree / "usr/share/doc/edgepress-agent"
    doc.mkdir(parents=True)
    shutil.copyfile(ROOT / "LICENSE", doc / "copyright")
    (doc / "changelog.gz").write_bytes(gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), 9, mtime=0))


def settle_times(tree: Path) -> None:
    """Give every file one time, and modes that depend on nobody's umask: the same sources make the same package."""
    moment = int(os.environ.get("SOURCE_DATE_EPOCH", "0")) or last_commit()
    for path in sorted(tree.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        os.utime(path, (moment, moment), follow_symlinks=False)


def last_commit() -> int:
    asked = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout or 0)


def compile_all(site: Path) -> None:
    """Ship byte code: the service may not write it, and would compile at every start."""
    inside = str(site.relative_to(site.parents[len(PREFIX.parts) + 2]))
    if not compileall.compile_dir(site, quiet=1, stripdir=str(site), prependdir=f"/{inside}"):
        raise SystemExit(f"{site}: not all of it compiles")


def control(tree: Path, arch: str, version: str) -> None:
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    debian = tree / "DEBIAN"
    debian.mkdir()
    size_kib = sum(path.stat().st_size for path in files) // 1024
    text = (HERE / "control").read_text().format(version=version, arch=arch, size_kib=size_kib)
    (debian / "control").write_text(text)
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files]
    (debian / "md5sums").write_text("".join(sums))
    for name in ("postinst", "prerm", "postrm"):
        shutil.copyfile(HERE / name, debian / name)
        (debian / name).chmod(0o755)


def run(*words: str, cwd: Path | None = None) -> None:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words[:4])} …: {done.stderr or done.stdout}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", choices=sorted(MACHINES), help="default: both")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--extras", default="agent", help="runtimes that come along; empty for none")
    options = parser.parse_args()
    for arch in options.arch or sorted(MACHINES):
        package = build(arch, options.out, options.extras)
        print(f"{package}: {package.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
