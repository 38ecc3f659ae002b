"""The controller's REST interface for commands; finds the running controller, or starts one for its own duration."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from edgepress_protocol.errors import Unavailable, UsageError

from edgepress_host.client.transient import Users, transient_controller
from edgepress_host.fleet.rollout import Rollout
from edgepress_host.server import views

T = TypeVar("T")
POLL_S = 25.0
_ANSWER_S = POLL_S + 15.0
_BLOCK_BYTES = 1 << 20
_FORMED_BYTES_PER_S = 100_000
"""What a controller on a busy machine makes wire forms of at least; ten times as much where it is alone."""


class Client:
    """A connection to one controller; `transient` tells that its broker ends with the command that started it.

    Every method raises UsageError for what the controller refuses, in its words, and Unavailable where it does not
    answer.
    """

    def __init__(self, running: views.Running, *, transient: bool = False) -> None:
        self.url = running.url
        self.transient = transient
        self._http = httpx.Client(
            base_url=running.url,
            headers={"Authorization": f"Bearer {_token(running)}"},
            timeout=httpx.Timeout(30.0, read=_ANSWER_S),
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def health(self) -> views.Health:
        """Ask the controller who it is."""
        return self._get("/v1/health", views.Health)

    def devices(self) -> tuple[views.DeviceView, ...]:
        """All devices, by id."""
        return self._get("/v1/devices", views.Devices).devices

    def forget_device(self, device: str) -> None:
        """Remove a device and what is kept for it."""
        self._request("DELETE", f"/v1/devices/{quote(device, safe='')}")

    def upload(self, path: Path, sha256: str) -> None:
        """Store a file under its digest, unless it is there already."""
        if self._http_call("HEAD", f"/v1/blobs/{sha256}").status_code == 200:
            return
        try:
            with path.open("rb") as file:
                blocks = iter(lambda: file.read(_BLOCK_BYTES), b"")
                answer_s = _ANSWER_S + os.fstat(file.fileno()).st_size / _FORMED_BYTES_PER_S
                timeout = httpx.Timeout(30.0, read=answer_s)
                self._request("PUT", f"/v1/blobs/{sha256}", content=blocks, timeout=timeout)
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error

    def add_manifest(self, manifest: views.ManifestIn) -> str:
        """Make a variant known; returns the digest of its manifest."""
        return self._post("/v1/manifests", manifest, views.ManifestRef).manifest

    def manifests(self) -> tuple[views.ManifestView, ...]:
        """All manifests, oldest first."""
        return self._get("/v1/manifests", views.Manifests).manifests

    def queue_trials(self, wanted: views.TrialsIn) -> views.TrialsOut:
        """Queue trials."""
        return self._post("/v1/trials", wanted, views.TrialsOut)

    def trials(self, **filters: str) -> tuple[views.TrialView, ...]:
        """Trials, oldest first; `filters` are state and device."""
        return self._get("/v1/trials", views.Trials, filters).trials

    def cancel_trial(self, trial: str) -> None:
        """Cancel a trial that has not ended."""
        self._request("DELETE", f"/v1/trials/{quote(trial, safe='')}")

    def measurements(self, **filters: str) -> tuple[views.MeasurementView, ...]:
        """Measurements, oldest first; `filters` are manifest and device."""
        return self._get("/v1/measurements", views.Measurements, filters).measurements

    def roll_out(self, wanted: views.RolloutIn) -> Rollout:
        """Start a rollout."""
        return self._post("/v1/rollouts", wanted, Rollout)

    def rollout(self, rollout: str) -> Rollout:
        """Where a rollout stands."""
        return self._get(f"/v1/rollouts/{quote(rollout, safe='')}", Rollout)

    def roll_back(self, devices: str) -> views.Rollback:
        """Set devices back to what they ran before."""
        return self._post("/v1/rollbacks", views.RollbackIn(devices), views.Rollback)

    def collect_garbage(self) -> views.Removed:
        """Remove what nothing refers to."""
        return self._post("/v1/gc", None, views.Removed)

    def last_seq(self) -> int:
        """Sequence number of the last change so far."""
        return self._get("/v1/changes", views.Changes).seq

    def changes(self, after: int, timeout_s: float = POLL_S) -> views.Changes:
        """Return changes after a sequence number, as soon as there are any; none after `timeout_s`."""
        return self._get("/v1/changes", views.Changes, {"after": str(after), "timeout_s": str(timeout_s)})

    def follow(self, look: Callable[[], bool], *, tick_s: float = POLL_S) -> None:
        """Call `look` at once and after every change (at the latest after `tick_s`), until it returns True."""
        # Asked for before the first look, so that nothing falls between the two.
        seq = self.last_seq()
        while not look():
            seq = self.changes(seq, tick_s).seq

    def _get(self, path: str, type_: type[T], query: dict[str, str] | None = None) -> T:
        return _decode(self._request("GET", path, params=query).content, type_)

    def _post(self, path: str, body: msgspec.Struct | None, type_: type[T]) -> T:
        content = b"" if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        return _decode(self._request("POST", path, content=content, headers=headers).content, type_)

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = self._http_call(method, path, **options)
        if answer.is_success:
            return answer
        line = _error_line(answer)
        if answer.status_code in (400, 404, 409, 413, 422):
            raise UsageError(line)
        raise Unavailable(f"controller at {self.url}: {line}")

    def _http_call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Unavailable(f"controller at {self.url} does not answer: {error or type(error).__name__}") from error


@contextmanager
def connect(data_dir: Path, say: Callable[[str], None], *, broker: str | None = None) -> Iterator[Client]:
    """Connect to the controller of `data_dir`; where none runs, run one until the block ends, and `say` so.

    The one that is started uses `broker`, or its own embedded one, which no device knows yet.

    Raises:
        UsageError: the data directory cannot be used.
        Unavailable: a controller should be there and does not answer, or could not be started.
    """
    with ExitStack() as stack:
        users = stack.enter_context(Users(data_dir))
        running = find(data_dir)
        transient = False
        if running is None:
            with users.starting():
                # Another command may have started one while this one waited for its turn.
                running = find(data_dir)
                if running is None:
                    running = stack.enter_context(transient_controller(data_dir, say, broker=broker))
                    stack.callback(users.outlast, say)
                    transient = broker is None
        client = Client(running, transient=transient)
        stack.callback(client.close)
        yield client


def find(data_dir: Path) -> views.Running | None:
    """Where the controller of `data_dir` runs; None where none does.

    Raises:
        Unavailable: its file cannot be read.
    """
    path = data_dir / "controller.json"
    try:
        running = msgspec.json.decode(path.read_bytes(), type=views.Running)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"{path}: cannot be read ({error}); stop the controller and remove the file") from error
    return running if _alive(running.pid) and _listens(running.url) else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _listens(url: str) -> bool:
    """Tell whether anything has the port: the process id in a file left by a crash may be another program's by now."""
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname or "", where.port or 0), timeout=5.0).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def _token(running: views.Running) -> str:
    try:
        return Path(running.token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"{running.token_file}: cannot read the controller's token ({error})") from error


def _decode(content: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unavailable(f"the controller's answer cannot be read ({error}); is it of the same version?") from error


def _error_line(answer: httpx.Response) -> str:
    try:
        return msgspec.json.decode(answer.content, type=views.ErrorView).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return f"status {answer.status_code} {answer.reason_phrase}"
