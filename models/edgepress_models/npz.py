"""Arrays out of an .npz file that somebody else wrote."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgepress_models.sources import Unusable

Content = TypeVar("Content")
_log = logging.getLogger(__name__)


def first(path: Path, check: Callable[[Mapping[str, npt.NDArray[Any]]], Content]) -> Content | None:
    """Return what `check` makes of the file's arrays; None where there is no file, or no usable one, which is logged.

    `check` may raise Unusable, and KeyError where an array is lacking.
    """
    try:
        with path.open("rb") as stream, np.load(stream) as arrays:
            return check(arrays)
    except FileNotFoundError:
        return None
    except (Unusable, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s is passed over: %s", path, error)
        return None
