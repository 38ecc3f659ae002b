"""Golden vectors before activation: a model that does not run right here never becomes the active one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edgepress_protocol.manifest import Manifest
from edgepress_protocol.messages import Failed

from edgepress_agent import runtimes
from edgepress_agent.measure.needs import unmet
from edgepress_agent.measure.pipe import CheckGolden, GoldenChecked, Open, Opened
from edgepress_agent.measure.worker import Ended, Worker


async def golden(
    manifest: Manifest, model: Path, golden: Path | None, *, timeout_s: float, work_dir: Path
) -> Failed | None:
    """Load a model in a child, run it once, and run its golden vectors where it has some.

    Returns why it must not be activated, or None.
    """
    reason = unmet(manifest)
    if reason:
        return Failed("unsupported", reason)
    try:
        return await asyncio.wait_for(_run(_open(manifest, model, golden), work_dir), timeout_s)
    except Ended as end:
        return end.outcome
    except asyncio.TimeoutError:
        return Failed("timeout", f"not loaded and checked after {timeout_s:g} s, and stopped")
    except OSError as error:
        return Failed("error", f"the runtime's process would not start: {error}")


def _open(manifest: Manifest, model: Path, golden: Path | None) -> Open:
    runtime, _ = runtimes.get(manifest.format)
    vectors = None if golden is None else str(golden.absolute())
    return Open(manifest, str(model.absolute()), runtime.name, golden=vectors)


async def _run(asked: Open, work_dir: Path) -> Failed | None:
    async with Worker(work_dir) as child:
        await child.ask(asked, Opened)
        if asked.golden is None or asked.manifest.golden is None:
            return None
        checked = await child.ask(CheckGolden(), GoldenChecked)
    return Failed("golden", checked.wrong) if checked.wrong else None
