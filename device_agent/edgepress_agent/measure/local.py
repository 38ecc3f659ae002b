"""A trial of a file that lies on this board, without a host: its manifest is made from what the file says."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edgepress_protocol.errors import UsageError
from edgepress_protocol.manifest import Manifest, digest
from edgepress_protocol.messages import ProfileOptions, Trial, encode
from edgepress_protocol.transfer import describe

from edgepress_agent import runtimes
from edgepress_agent.measure.job import Job
from edgepress_agent.measure.pipe import Look, Seen
from edgepress_agent.measure.worker import Ended, Worker


async def job_of(model: Path, options: ProfileOptions, work_dir: Path) -> Job:
    """Return the trial of a model file, named after it; its suffix names the format.

    Raises:
        UsageError: there is no runtime for it here, or the runtime does not take it.
    """
    path = await asyncio.to_thread(model.resolve)
    suffix = model.suffix.removeprefix(".").lower()
    try:
        runtime, _ = runtimes.get(suffix)
        async with Worker(work_dir) as child:
            seen = await child.ask(Look(suffix, str(path), runtime.name), Seen)
    except (runtimes.Unsupported, Ended) as error:
        raise UsageError(f"{model}: {error}") from error
    blob, _ = describe(await asyncio.to_thread(model.read_bytes))
    manifest = Manifest(model.stem or model.name, suffix, blob, seen.inputs, seen.outputs)
    known = digest(encode(manifest))
    trial = Trial(known[:32], known, options=options)
    return Job(trial, manifest, model, None, None, work_dir)
