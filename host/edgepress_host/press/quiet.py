"""Keep chatty libraries off the user's terminal while they work."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what libraries write (Python or C++) to nowhere for a moment; errors still travel as exceptions.

    Works on the file descriptors 1 and 2, thus for the whole process: a progress bar keeps a descriptor of its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    level = logging.root.manager.disable
    with open(os.devnull, "wb") as nowhere, warnings.catch_warnings():  # noqa: PTH123 - a descriptor is what is needed
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
            logging.disable(level)
