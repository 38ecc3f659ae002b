"""Which devices a person means: `all`, `id=a,b`, `kind=raspberry-pi-5`, `runtime=onnx`, or plain ids with commas."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from edgepress_host.fleet.records import DeviceRecord, Unknown

_KEYS = ("id", "kind", "runtime")


def choose(selector: str, devices: Mapping[str, DeviceRecord]) -> tuple[str, ...]:
    """Ids of the selected devices, sorted for everything but a list of ids, which keeps its order.

    Raises:
        Unknown: it names a device, kind or runtime that the fleet does not have; the line gives the nearest one.
    """
    if not devices:
        raise Unknown("no device has joined the fleet yet: start `edgepress-agent run` on one")
    if selector == "all":
        return tuple(sorted(devices))
    key, separator, rest = selector.partition("=")
    names = [name.strip() for name in (rest if separator else selector).split(",")]
    key = key if separator else "id"
    if key not in _KEYS:
        raise Unknown(f"selector {selector!r}: expected all, id=, kind=, runtime=, or ids with commas")
    chosen: dict[str, None] = {}
    for name in names:
        found = [device_id for device_id in sorted(devices) if name in _words(devices[device_id], key)]
        if not found:
            known = {word for record in devices.values() for word in _words(record, key)}
            raise Unknown(f"no device with {key} {name!r}{_hint(name, known)}")
        chosen |= dict.fromkeys(found)
    return tuple(chosen)


def _words(record: DeviceRecord, key: str) -> set[str]:
    match key:
        case "id":
            return {record.id}
        case "kind":
            return {record.state.device.board.kind}
        case _:
            runtimes = record.state.device.runtimes
            return {runtime.name for runtime in runtimes} | {runtime.format for runtime in runtimes}


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(sorted(known)[:10]) or 'none'}"
