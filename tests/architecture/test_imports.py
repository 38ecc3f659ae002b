"""The walls of the house: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {
    "edgepress_protocol": ROOT / "protocol",
    "edgepress_agent": ROOT / "device_agent",
    "edgepress_host": ROOT / "host",
    "edgepress_models": ROOT / "models",
}
MAY_IMPORT = {
    "edgepress_protocol": {"edgepress_protocol"},
    "edgepress_agent": {"edgepress_agent", "edgepress_protocol"},
    "edgepress_host": {"edgepress_host", "edgepress_protocol"},
    "edgepress_models": {"edgepress_models"},
}
NEVER = {
    "edgepress_protocol": {
        "os",
        "io",
        "pathlib",
        "socket",
        "subprocess",
        "asyncio",
        "time",
        "random",
        "torch",
        "numpy",
    },
    "edgepress_agent": {"torch", "onnx", "rich"},
    "edgepress_host": set(),
    "edgepress_models": set(),
}


def files(package: str) -> list[Path]:
    found = sorted((OURS[package] / package).rglob("*.py"))
    assert found, f"{package} holds no Python file"
    return found


def imports(path: Path) -> set[str]:
    """Top-level names of everything a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write the package's name"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", OURS)
def test_imports_run_one_way(package: str) -> None:
    forbidden = (OURS.keys() - MAY_IMPORT[package]) | NEVER[package]
    wrong = {str(path.relative_to(ROOT)): found for path in files(package) if (found := imports(path) & forbidden)}
    assert not wrong


@pytest.mark.parametrize("package", OURS)
def test_files_stay_small(package: str) -> None:
    long = {
        str(path.relative_to(ROOT)): length
        for path in files(package)
        if (length := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


@pytest.mark.parametrize("package", OURS)
def test_packages_are_typed(package: str) -> None:
    assert (OURS[package] / package / "py.typed").exists()
