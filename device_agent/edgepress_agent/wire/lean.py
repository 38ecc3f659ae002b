"""Imports paho without urllib.request, which it has for a proxy's sake and which brings http.client and a mail parser.

An idle agent would hold these megabytes for ever. Where PySocks, and so a proxy, may be, all is imported.
"""

from __future__ import annotations

import importlib.util
import sys
import urllib
from types import ModuleType

_LEFT_OUT = "urllib.request"


def import_paho() -> None:
    """Import paho's client; what imports urllib.request afterwards gets the real one."""
    if _LEFT_OUT in sys.modules or importlib.util.find_spec("socks") is not None:
        import paho.mqtt.client
    else:
        sys.modules[_LEFT_OUT] = ModuleType(_LEFT_OUT)
        try:
            import paho.mqtt.client  # noqa: F401
        finally:
            del sys.modules[_LEFT_OUT]
            vars(urllib).pop("request", None)


import_paho()
