"""Which kind of board this is, from its device tree and its processor."""

from __future__ import annotations

import re

KINDS = (
    ("raspberrypi,5-model-b", "raspberry-pi-5"),
    ("raspberrypi,5-compute-module", "raspberry-pi-cm5"),
    ("raspberrypi,500", "raspberry-pi-500"),
    ("raspberrypi,4-model-b", "raspberry-pi-4"),
    ("raspberrypi,4-compute-module", "raspberry-pi-cm4"),
    ("raspberrypi,400", "raspberry-pi-400"),
    ("raspberrypi,3-model-b-plus", "raspberry-pi-3b-plus"),
    ("raspberrypi,3-model-a-plus", "raspberry-pi-3a-plus"),
    ("raspberrypi,3-model-b", "raspberry-pi-3b"),
    ("raspberrypi,model-zero-2-w", "raspberry-pi-zero-2-w"),
    ("nvidia,p3701", "jetson-agx-orin"),
    ("nvidia,p3767-0000", "jetson-orin-nx"),
    ("nvidia,p3767-0001", "jetson-orin-nx"),
    ("nvidia,p3767", "jetson-orin-nano"),
    ("nvidia,p3668", "jetson-xavier-nx"),
    ("nvidia,p2888", "jetson-agx-xavier"),
    ("nvidia,p3310", "jetson-tx2"),
    ("nvidia,p3489", "jetson-tx2"),
    ("nvidia,p3636", "jetson-tx2-nx"),
    ("nvidia,p3448-0003", "jetson-nano-2gb"),
    ("nvidia,p3448", "jetson-nano"),
    # Names of developer kits, which some device trees have without the module's number.
    ("nvidia,jetson-nano-2gb", "jetson-nano-2gb"),
    ("nvidia,jetson-nano", "jetson-nano"),
    ("nvidia,jetson-xavier", "jetson-agx-xavier"),
    ("nvidia,p2972", "jetson-agx-xavier"),
    ("nvidia,p2771", "jetson-tx2"),
)
"""Start of a `compatible` string of the device tree, and the kind; a Jetson's module decides, not its carrier."""

_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
}
_NVIDIA_CORES = {"0x003": "Denver 2", "0x004": "Carmel"}
_ARM, _NVIDIA = "0x41", "0x4e"


def kind(compatible: list[str], arch: str) -> str:
    """Name the kind of board from the device tree's `compatible` strings, most specific first.

    >>> kind(["radxa,rock-5b", "rockchip,rk3588"], "aarch64")
    'radxa-rock-5b'
    """
    # A Jetson's first string names carrier and module ("p3768-0000+p3767-0005-super"): the module is what computes.
    words = [f"nvidia,{part.split('+')[-1].removeprefix('nvidia,')}" if "+" in part else part for part in compatible]
    for start, name in KINDS:
        if any(word.startswith(start) for word in words):
            return name
    own = re.sub(r"[^A-Za-z0-9.]+", "-", compatible[0]).strip("-")[:64] if compatible else ""
    return own or arch


def cpu(cpuinfo: str) -> str:
    r"""Name the processor's cores, those that differ joined by a plus; empty where /proc/cpuinfo does not tell.

    >>> cpu("CPU implementer : 0x41\nCPU part : 0xd08\n")
    'Cortex-A72'
    """
    if name := _first(cpuinfo, "model name"):
        return name
    implementers, parts = _all(cpuinfo, "CPU implementer"), _all(cpuinfo, "CPU part")
    return " + ".join(dict.fromkeys(_core(*each) for each in zip(implementers, parts, strict=False)))


def cores(cpuinfo: str) -> int:
    """Count the processors of /proc/cpuinfo; 0 where it lists none."""
    return len(re.findall(r"^processor[ \t]*:", cpuinfo, re.MULTILINE))


def _core(implementer: str, part: str) -> str:
    if implementer == _NVIDIA:
        return _NVIDIA_CORES.get(part, f"NVIDIA {part}")
    return _ARM_CORES.get(part, f"Arm {part}") if implementer == _ARM else f"implementer {implementer} part {part}"


def _first(text: str, name: str) -> str:
    return next(iter(_all(text, name)), "")


def _all(text: str, name: str) -> list[str]:
    return [found.strip() for found in re.findall(rf"^{re.escape(name)}[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)]
