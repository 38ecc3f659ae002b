"""Makes the lab of the measuring tests importable here, with its fixtures."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "measure"))

from measure_lab import lab, misbehaving_runtime  # noqa: F401 - fixtures of these tests
