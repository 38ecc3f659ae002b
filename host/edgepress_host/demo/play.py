"""The main job from end to end: compress → push → profile → select → deploy, with three agents on this machine.

Each act is a command of `edgepress` in a process of its own, shown as a user would type it.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from edgepress_protocol.errors import Unavailable, UsageError
from rich.console import Console

from edgepress_host import keys
from edgepress_host.cli._watch import ENDED
from edgepress_host.client.client import Client, find
from edgepress_host.client.crew import Crew, stopped_by_signals
from edgepress_host.demo.summary import summarise

RECIPE = "edgepress_models/recipes/demo.toml"
DATA_HINT = "python -m edgepress_models.fashion_mnist fetch"
WINDOW_S = 1.0
JOIN_S = 60.0
LOOK_S = 2.0
"""How often, at least, the agents' processes are looked at while they connect."""


class Agent(msgspec.Struct, frozen=True):
    """One of the demo's devices: the interpreter that runs it, and the one runtime that it offers."""

    id: str
    python: Path
    runtime: str


class Stage(msgspec.Struct, frozen=True):
    """Where the demo plays: `out` is what it leaves, `data_dir` its controller's, `scratch` goes with it."""

    out: Path
    data_dir: Path
    scratch: Path
    console: Console


def play(out: Path, *, tflite_python: Path | None, recipe: Path | None, console: Console) -> None:
    """Run the demo; leaves variants, measurements, choice and report in `out`.

    Raises:
        UsageError: something that it needs is not installed.
        Unavailable: one of its processes failed; the line says which.
    """
    started = time.monotonic()
    agents = cast_of(tflite_python)
    recipe = recipe or _shipped_recipe()
    out.mkdir(parents=True, exist_ok=True)
    data_dir = out / "controller"
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir(parents=True)
    with stopped_by_signals(), tempfile.TemporaryDirectory(prefix="edgepress-demo-") as scratch, Crew(data_dir) as crew:
        stage = Stage(out, data_dir, Path(scratch), console)
        compress(stage, recipe)
        client = serve(stage, crew)
        board(stage, crew, client, agents)
        profile(stage)
        choose(stage)
        deploy(stage)
        report(stage)
        summarise(out, console)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Report: [bold]{out / 'report.html'}[/]")


def cast_of(tflite_python: Path | None) -> list[Agent]:
    """Return the three agents, or two where no environment with tflite-runtime was named."""
    here = Path(sys.executable)
    agents = [Agent("board-onnxruntime", here, "onnxruntime"), Agent("board-litert", here, "ai-edge-litert")]
    if tflite_python is None:
        return agents
    if not tflite_python.exists():
        raise UsageError(f"--tflite-python {tflite_python}: no such program; `make .venv-tflite/ready` makes it")
    return [*agents, Agent("board-tflite-runtime", tflite_python.absolute(), "tflite-runtime")]


def compress(stage: Stage, recipe: Path) -> None:
    """Act one: variants."""
    _say(
        stage,
        "1. Compress",
        f"fine-tuning on the subset that {recipe.name} states; a second run takes it from the cache",
    )
    _edgepress(stage, "compress", str(recipe), "--out", str(stage.out))


def serve(stage: Stage, crew: Crew) -> Client:
    """Act two: keys, broker and controller."""
    _say(stage, "2. Serve", "an embedded MQTT broker on loopback, and the controller")
    keys.init(stage.data_dir / "keys")
    command = [sys.executable, "-m", "edgepress_host.cli", "--data-dir", str(stage.data_dir), "serve"]
    stage.console.print(f"$ edgepress --data-dir {stage.data_dir} serve &", style="dim", highlight=False)
    stage.console.print(crew.first_line("controller", crew.start("controller", command)), highlight=False)
    running = find(stage.data_dir)
    if running is None:
        raise Unavailable(f"the controller ended; see {stage.data_dir / 'controller.log'}")
    return Client(running)


def board(stage: Stage, crew: Crew, client: Client, agents: list[Agent]) -> None:
    """Act three: three agents, each a process and each with one runtime."""
    _say(stage, "3. Boards", "three agents on this machine, each with one runtime; they measure in turn")
    health = client.health()
    for agent in agents:
        options = ["--broker", health.broker, "--id", agent.id, "--trust", health.public_key_file]
        places = ["--state-dir", str(stage.scratch / agent.id), "--measure-lock", str(stage.scratch / "measure.lock")]
        # A port, and not the usual socket in the state folder: a temporary folder's path can be too long for one.
        offers = ["--runtime", agent.runtime, "--serve", "127.0.0.1:0"]
        command = [str(agent.python), "-m", "edgepress_agent", "run", *options, *places, *offers]
        stage.console.print(
            f"$ edgepress-agent run --id {agent.id} --runtime {agent.runtime} … &", style="dim", highlight=False
        )
        crew.start(agent.id, command)
    wanted = {agent.id for agent in agents}
    deadline = time.monotonic() + JOIN_S
    seq = client.last_seq()
    while missing := wanted - {view.id for view in client.devices() if view.online}:
        crew.check()
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"{', '.join(sorted(missing))} did not connect; see the logs in {stage.data_dir}")
        seq = client.changes(seq, min(left, LOOK_S)).seq
    _edgepress(stage, "devices")


def profile(stage: Stage) -> None:
    """Act four: push, and measure on the boards."""
    _say(stage, "4. Profile", f"windows of {WINDOW_S:g} s (the default is 10 s), accuracy on the pushed evaluation set")
    options = ["profile", str(stage.out), "--window-s", f"{WINDOW_S:g}", "--json"]
    printed = _edgepress(stage, *options, capture=True)
    (stage.out / "measurements.json").write_bytes(printed)
    left = [one["device"] for one in msgspec.json.decode(printed)["trials"] if one["state"] not in ENDED]
    if left:
        raise Unavailable(f"{', '.join(sorted(set(left)))} went away in mid-run; see the logs in {stage.data_dir}")


def choose(stage: Stage) -> None:
    """Act five: the Pareto front and the choice."""
    _say(stage, "5. Select", "per board, within the recipe's budget")
    options = ["select", "--variants", str(stage.out), "--per", "device"]
    _edgepress(stage, *options)
    (stage.out / "choice.json").write_bytes(_edgepress(stage, *options, "--json", capture=True, show=False))


def deploy(stage: Stage) -> None:
    """Act six: make the chosen variants active."""
    _say(stage, "6. Deploy", "each board checks the golden vectors in its own runtime before it switches")
    _edgepress(stage, "deploy", "--selected")
    _edgepress(stage, "devices")


def report(stage: Stage) -> None:
    """Act seven: the report."""
    _say(stage, "7. Report", "")
    _edgepress(stage, "report", "--variants", str(stage.out), "--out", str(stage.out / "report.html"))


def _edgepress(stage: Stage, *arguments: str, capture: bool = False, show: bool = True) -> bytes:
    """Run a command of ours as a user would; its progress and errors are shown as they come."""
    if show:
        stage.console.print(f"$ edgepress {shlex.join(arguments)}", style="dim", highlight=False)
    command = [sys.executable, "-m", "edgepress_host.cli", "--data-dir", str(stage.data_dir), *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        raise Unavailable(f"`edgepress {arguments[0]}` ended with status {done.returncode}; its line stands above")
    return done.stdout or b""


def _say(stage: Stage, title: str, text: str) -> None:
    stage.console.print(f"\n[bold]{title}[/]  [dim]{text}[/]", highlight=False)


def _shipped_recipe() -> Path:
    package, _, inside = RECIPE.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UsageError(f"{package} is not installed, and the demo's recipe is in it")
    return Path(found.origin).parent / inside
