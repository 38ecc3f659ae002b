"""Helpers of the tests of quantization: a net of every kind of layer, and what is in a file."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import torch
from edgepress_host import evaluate, exporters, technique
from edgepress_host.press.strict import convert
from edgepress_host.techniques.quantize.grid import integers
from onnx import numpy_helper
from torch import nn

SMALL = {"onnx": {8: "int8", 4: "int4", 2: "int2", 1: "uint8"}, "tflite": {8: "int8", 4: "int4", 2: "int2"}}


class Net(nn.Module):
    """Every kind of layer that the tools treat apart: convolution, depthwise, batch normalization, dense."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.back = nn.Conv2d(16, 16, 3, padding=1)
        self.hidden = nn.Linear(16 * 36, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.deep(torch.relu(self.stem(x))))
        x = torch.relu(self.norm(self.wide(x)))
        x = torch.relu(x + self.back(x))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Paired(nn.Module):
    """Two convolutions to pair, one in a residual, a flattened one before dense layers, and one without a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 16, 1)
        self.back = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)
        self.hidden = nn.Linear(4 * 36, 24)
        self.head = nn.Linear(24, 4, bias=False)

    def forward(self, x):
        x = torch.relu(self.deep(torch.relu(self.norm(self.first(x)))))
        x = self.wide(x)
        x = torch.relu(x + self.back(x))
        return self.head(torch.relu(self.hidden(torch.relu(self.last(x)).flatten(1))))


class Attentive(nn.Module):
    """A LayerNorm with three dense layers behind it, whose activations have an outlying feature; and one with a sum."""

    def __init__(self):
        super().__init__()
        self.before = nn.LayerNorm(12)
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.after = nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)
        with torch.no_grad():
            self.before.weight[3] = 60.0
            for layer in (self.query, self.key, self.value):
                layer.weight[:, 3] *= 0.02

    def forward(self, x):
        x = x.flatten(1, 2)
        h = self.before(x)
        shares = torch.softmax(self.query(h) @ self.key(h).transpose(1, 2) / 12**0.5, -1)
        x = self.after(x + shares @ self.value(h))
        return self.head(x + x.mean(-1, keepdim=True)).mean(1)


def seeded(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind().eval()


def made_from(options):
    step = convert(options, technique.found()["quantize"])
    step.check()
    return step


def outputs(format_, content, x, *, plain_kernels):
    runner = evaluate.open_runner(format_, content, plain_kernels=plain_kernels)
    size = 1 if format_ == "tflite" else len(x)
    return np.concatenate([runner.run(np.ascontiguousarray(x[at : at + size]))[0] for at in range(0, len(x), size)])


def kinds(format_, content):
    """Types of stored weights, biases and shapes aside."""
    found = {w.dtype for w in exporters.get(format_).weights(content) if len(w.shape) > 1}
    return found - {"int32", "int64"}


def value_of(content, tensor):
    """Return what ONNX Runtime makes of a tensor that depends on constants alone."""
    model = onnx.load_from_string(content)
    stored = {one.name: one for one in model.graph.initializer}
    if tensor in stored:
        return numpy_helper.to_array(stored[tensor])
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    return session.run([tensor], {first.name: np.zeros((1, 1, 12, 12), np.float32)})[0]


def loaded(content, path):
    """Kinds of nodes that are left when ONNX Runtime has loaded a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node}


LIMITS = {8: 0.03, 4: 0.3, 2: 2.0, 1: 2.0}


def run(model, x):
    with torch.no_grad():
        return model(torch.from_numpy(np.array(x))).numpy()


def rounded(model, bits, kept=(0,), **how):
    """The model with its weights on the grids that a file will have."""
    changed = copy.deepcopy(model)
    for layer in changed.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(integers(layer.weight.numpy(), bits, kept, **how).real))
    return changed


def apart(model, exact, x):
    wanted = run(exact, x)
    return float(np.square(run(model, x) - wanted).mean() / np.square(wanted).mean())
