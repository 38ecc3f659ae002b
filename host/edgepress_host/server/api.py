"""REST: each route takes records of `views`, asks or changes the core, and gives records of `views`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, TypeVar

import msgspec
import uvicorn
from edgepress_protocol.errors import EdgepressError, Rejected, UsageError
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from edgepress_host.fleet.records import Conflict, Unknown
from edgepress_host.fleet.rollout import Rollout
from edgepress_host.server import actions, pages, shown, views
from edgepress_host.server.core import Core
from edgepress_host.server.guard import Guard, refusal, token_at
from edgepress_host.server.openapi import describe, gives, takes

T = TypeVar("T", bound=msgspec.Struct)
MAX_JSON_BYTES = 16 * 1024 * 1024


def create_app(core: Core) -> FastAPI:
    """Build the application around a controller's core."""
    app = FastAPI(title="edgepress controller", version=version("edgepress"), redoc_url=None, docs_url=None)
    app.add_middleware(Guard, token=token_at(core.settings.token_file))
    _add_errors(app)
    _add_readers(app, core)
    _add_files(app, core)
    _add_actions(app, core)
    describe(app)
    return app


async def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer requests on a listening socket until cancelled."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=2
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="uvicorn")
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await asyncio.shield(serving)


class _Server(uvicorn.Server):
    """uvicorn, which leaves signals to the controller."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(EdgepressError)
    async def ours(_request: Request, error: Exception) -> Response:
        match error:
            case Unknown():
                status = 404
            case Conflict():
                status = 409
            case UsageError():
                status = 400
            case Rejected():
                status = 422
            case _:
                status = 503
        return refusal(status, str(error))

    @app.exception_handler(RequestValidationError)
    async def query(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return refusal(400, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")

    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: Exception) -> Response:
        return refusal(400, "the sender left before the body's end")

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refusal(error.status_code, str(error.detail))


def _add_readers(app: FastAPI, core: Core) -> None:
    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        """Show the page of devices and measurements."""
        return pages.page()

    @app.get("/v1/health", responses=gives(views.Health))
    async def health() -> Response:
        """Who this controller is."""
        return _json(shown.health(core))

    @app.get("/v1/devices", responses=gives(views.Devices))
    async def devices() -> Response:
        """All devices."""
        return _json(shown.devices(core))

    @app.get("/v1/manifests", responses=gives(views.Manifests))
    async def manifests() -> Response:
        """All manifests."""
        return _json(shown.manifests(core))

    @app.get("/v1/trials", responses=gives(views.Trials))
    async def trials(state: str | None = None, device: str | None = None) -> Response:
        """Trials; `state` may be `open` too."""
        return _json(shown.trials(core, state, device))

    @app.get("/v1/measurements", responses=gives(views.Measurements))
    async def measurements(manifest: str | None = None, device: str | None = None) -> Response:
        """Give what was measured."""
        return _json(shown.measurements(core, manifest, device))

    @app.get("/v1/rollouts", responses=gives(views.Rollouts))
    async def rollouts() -> Response:
        """All rollouts."""
        return _json(views.Rollouts(tuple(core.database.rollouts())))

    @app.get("/v1/rollouts/{rollout_id}", responses=gives(Rollout))
    async def rollout(rollout_id: str) -> Response:
        """One rollout."""
        return _json(shown.rollout(core, rollout_id))

    @app.get("/v1/changes", responses=gives(views.Changes))
    async def changes(
        after: Annotated[int | None, Query(ge=0, le=1 << 62)] = None,
        timeout_s: Annotated[float, Query(ge=0, le=60)] = 25.0,
    ) -> Response:
        """Give what changed after a sequence number, as soon as anything did, or nothing after `timeout_s`.

        Without a number: the latest changes, at once.
        """
        found = tuple(await core.changes(after, timeout_s))
        return _json(views.Changes(found[-1].seq if found else after or 0, found))


def _add_files(app: FastAPI, core: Core) -> None:
    @app.put("/v1/blobs/{sha256}", responses=gives(views.BlobView))
    async def put_blob(sha256: str, request: Request) -> Response:
        """Store a file under its digest; the body is the file."""
        return _json(await actions.store_blob(core, sha256, request.stream()))

    @app.head("/v1/blobs/{sha256}")
    async def head_blob(sha256: str) -> Response:
        """Tell whether a file is stored: 200, or 404."""
        return Response(status_code=200 if actions.has_blob(core, sha256) else 404)


def _add_actions(app: FastAPI, core: Core) -> None:
    @app.post("/v1/manifests", responses=gives(views.ManifestRef), openapi_extra=takes(views.ManifestIn))
    async def add_manifest(request: Request) -> Response:
        """Make a variant known; the same content gives the same digest."""
        return _json(actions.add_manifest(core, await _body(request, views.ManifestIn)))

    @app.post("/v1/trials", responses=gives(views.TrialsOut), openapi_extra=takes(views.TrialsIn))
    async def add_trials(request: Request) -> Response:
        """Queue trials."""
        return _json(actions.add_trials(core, await _body(request, views.TrialsIn)))

    @app.delete("/v1/trials/{trial_id}", status_code=204)
    async def cancel_trial(trial_id: str) -> Response:
        """Cancel an open trial."""
        core.apply(core.fleet.cancel(trial_id, time.time()))
        return Response(status_code=204)

    @app.delete("/v1/devices/{device_id}", status_code=204)
    async def forget_device(device_id: str) -> Response:
        """Remove a device, and what is retained for it; one that still runs joins again."""
        actions.forget_device(core, device_id)
        return Response(status_code=204)

    @app.post("/v1/rollouts", responses=gives(Rollout), openapi_extra=takes(views.RolloutIn))
    async def roll_out(request: Request) -> Response:
        """Start a rollout."""
        return _json(actions.roll_out(core, await _body(request, views.RolloutIn)))

    @app.post("/v1/rollbacks", responses=gives(views.Rollback), openapi_extra=takes(views.RollbackIn))
    async def roll_back(request: Request) -> Response:
        """Set devices back to what they ran before."""
        return _json(actions.roll_back(core, await _body(request, views.RollbackIn)))

    @app.post("/v1/gc", responses=gives(views.Removed))
    async def collect_garbage(min_age_s: Annotated[float, Query(ge=0)] = actions.GRACE_S) -> Response:
        """Remove manifests and files that nothing refers to."""
        return _json(actions.collect_garbage(core, min_age_s))


async def _body(request: Request, record: type[T]) -> T:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_JSON_BYTES:
            raise UsageError(f"body of more than {MAX_JSON_BYTES} bytes")
    with contextlib.suppress(RecursionError):
        try:
            return msgspec.json.decode(data, type=record)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"{record.__name__}: {error}") from error
    raise UsageError(f"{record.__name__}: nested too deeply")


def _json(record: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(record), media_type="application/json")
