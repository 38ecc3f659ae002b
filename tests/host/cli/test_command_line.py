"""What holds for every command: quick help, one line for a mistake, documentation."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgepress_host.cli import document

ROOT = Path(__file__).resolve().parents[3]


HEAVY = ("torch", "onnxruntime", "ai_edge_litert", "fastapi", "sqlalchemy", "httpx", "rich", "numpy")


def test_help_answers_at_once() -> None:
    script = (
        "import resource, sys\n"
        "from edgepress_host.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], used.ru_utime + used.ru_stime, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded, _, seconds = done.stderr.strip().rpartition(" ")
    assert loaded == "[]"
    assert float(seconds) < 0.5
    assert {"compress", "profile", "select", "serve"} <= set(re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE))


def test_every_command_is_documented() -> None:
    written = (ROOT / "docs" / "commands.md").read_text()
    assert written == document.document(), "run: python -m edgepress_host.cli.document > docs/commands.md"


def test_every_option_of_ours_has_words() -> None:
    from edgepress_host.cli import edgepress

    assert not list(_silent(edgepress))


def _silent(command: Any) -> Any:
    import click

    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.help:
            yield command.name, parameter.name
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                yield from _silent(command.get_command(context, name))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("profle",), 2, "did you mean 'profile'?"),
        (("--colour", "devices"), 2, "edgepress --help"),
        (("devices", "--jsn"), 2, "edgepress devices --help"),
        (("keys", "show"), 2, "edgepress keys init"),
        (("deploy", "--selected"), 2, "run `edgepress select` first"),
        (("profile", "missing.onnx"), 2, "No such file"),
        (("profile", "./model.pt"), 2, "expected a file that ends in .onnx or .tflite"),
        (("profile", "nosuch/folder"), 2, "nosuch/folder: no such folder or file"),
        (("profile", "."), 2, "edgepress compress"),
        (("profile", "small", "--variants", "nowhere"), 2, "nowhere"),
        (("profile", "small", "--eval", "none.safetensors"), 2, "none.safetensors"),
        (("select", "--variants", "nowhere"), 2, "edgepress compress"),
        (("report",), 2, "nothing is measured yet"),
        (("--broker", "mqtt://127.0.0.1:1", "devices"), 1, "127.0.0.1:1"),
        (("completion", "tcsh"), 2, "tcsh"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    shell: Any, tmp_path: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    (tmp_path / "model.pt").touch()
    done = shell.run(*arguments, expect=status, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert words in lines[-1]
    assert not done.stdout


@pytest.mark.parametrize(("arguments", "path"), [((), "edgepress"), (("keys",), "edgepress keys")])
def test_a_group_without_a_command_is_its_help(shell: Any, arguments: tuple[str, ...], path: str) -> None:
    said = shell.run(*arguments, expect=2)
    assert said.stderr == shell.run(*arguments, "--help").stdout
    assert said.stderr.startswith(f"Usage: {path} ")
    assert len(said.stderr.splitlines()) > 5
    assert not said.stdout


def test_a_choice_of_nothing_says_to_measure_first(shell: Any) -> None:
    no_budget = "no --variants: no recipe's budget; limits are only those given here"
    assert no_budget in shell.run("select").stderr.splitlines()
    assert no_budget not in shell.run("select", "--max-file-bytes", "100").stderr
    assert no_budget in shell.run("select", "--max-file-bytes", "none").stderr
    assert "run `edgepress profile DIR` and select again" in shell.error("deploy", "--selected")
    assert "'--energy-mj': expected a number or none, got 'some'" in shell.error("select", "--energy-mj", "some")
    assert "expected a whole number or none" in shell.error("select", "--max-file-bytes", "1.5")


def test_control_characters_of_others_do_not_reach_the_terminal(shell: Any) -> None:
    assert "\x1b" not in shell.error("deploy\x1b[2J")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"schema": 99}', b'{"schema": 1, "variants": 3}'])
def test_a_damaged_list_of_variants_is_one_line(shell: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "variants.json").write_bytes(content)
    assert "variants.json" in shell.error("profile", tmp_path)


def test_a_file_that_is_no_model_is_one_line(shell: Any, tmp_path: Path) -> None:
    for name in ("bad.onnx", "bad.tflite"):
        (tmp_path / name).write_bytes(b"not a model at all" * 9)
        assert name in shell.error("profile", tmp_path / name)


def test_a_changed_file_is_refused(shell: Any, folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "variants"
    shutil.copytree(folder, copy)
    with (copy / "small.onnx").open("ab") as file:
        file.write(b"\0")
    assert "was changed" in shell.error("profile", copy)


def test_what_the_machine_refuses_is_one_line(shell: Any) -> None:
    assert "cannot use the data directory /proc/nowhere" in shell.error("--data-dir", "/proc/nowhere", "devices")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            shell.command("keys", "init", "--json"),
            env=shell.environment,
            stdout=full,
            stderr=-1,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_keys_are_made_once(shell: Any) -> None:
    made = shell.json("keys", "init", "--name", "lab")
    assert made["public_key"].startswith("edgepress-ed25519-public ")
    assert made == shell.json("keys", "show")
    private = Path(made["private_key_file"]).read_text().split()[1]
    assert private not in shell.run("keys", "show", "--json").stdout
    assert "never overwritten" in shell.error("keys", "init")


def test_a_reader_that_leaves_hears_no_complaint(shell: Any) -> None:
    process = subprocess.Popen(
        shell.command("completion", "bash"), env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) in {0, 1}  # click's own answer to a closed pipe is 1


def test_ctrl_c_is_one_word_and_130(shell: Any) -> None:
    shell.run("keys", "init")
    process = subprocess.Popen(
        shell.command("devices"), env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    # It waits for the controller that it starts: the log appears before that one is ready.
    while not (shell.data_dir / "controller.log").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "Traceback" not in said
    assert process.returncode == 130
    assert not (shell.data_dir / "controller.json").exists()


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: Any, name: str) -> None:
    assert "_EDGEPRESS_COMPLETE" in shell.run("completion", name).stdout


def test_in_an_environment_of_the_agent_alone_it_says_what_it_lacks(shell: Any, tmp_path: Path) -> None:
    """As the wheel installs it on a board: the command is there, its parts are not."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['httpx'] = None\n")
    done = subprocess.run(
        shell.command("devices"),
        env={**shell.environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "httpx is not installed: this needs the host's parts" in done.stderr
