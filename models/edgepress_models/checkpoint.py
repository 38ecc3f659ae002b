"""The trained weights that ship inside the package: a safetensors file and the record of its training, per model."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from edgepress_models import files


def load(model: nn.Module, name: str) -> nn.Module:
    """Fill `model` with the shipped weights of `name`, and return it in eval mode.

    Raises:
        FileNotFoundError: no weights are shipped under that name.
        RuntimeError: the weights belong to another architecture.
    """
    model.load_state_dict(safetensors.torch.load(_shipped(f"{name}.safetensors")))
    return model.eval()


def record(name: str) -> dict[str, Any]:
    """Return what the training of the shipped weights measured: accuracies, parameters, seed, epochs, command.

    Raises:
        FileNotFoundError: no weights are shipped under that name.
    """
    measured: dict[str, Any] = json.loads(_shipped(f"{name}.json"))
    return measured


def save(model: nn.Module, measured: dict[str, Any], name: str, folder: Path) -> Path:
    """Write `folder/name.safetensors` and `folder/name.json`, and return the path of the weights."""
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    weights = folder / f"{name}.safetensors"
    files.write_atomically(weights, safetensors.torch.save(state))
    files.write_atomically(folder / f"{name}.json", (json.dumps(measured, indent=2) + "\n").encode())
    return weights


def _shipped(file_name: str) -> bytes:
    return (resources.files("edgepress_models") / "weights" / file_name).read_bytes()
