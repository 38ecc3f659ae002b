"""Texts of recipes that the tests use."""

HEAD = """
[model]
source = "compress_zoo:build"
[data]
source = "compress_zoo:load"
[guard]
max_drop = 0.1
"""

SMALL = """
[[variant]]
name = 'small'
formats = ['onnx', 'tflite']
steps = [{ technique = 'prune', ratio = 0.5 }]
"""

PLAIN = (
    HEAD
    + """
[[variant]]
name = "int8"
formats = ["onnx", "tflite"]
steps = [{ technique = "quantize", mode = "static", samples = 32 }]

[[variant]]
name = "pruned-int8"
formats = ["onnx", "tflite"]
steps = [
  { technique = "prune", ratio = 0.5, epochs = 4, lr = 3e-3 },
  { technique = "quantize", mode = "static", samples = 32 },
]
"""
)

BOTH = (
    PLAIN
    + """
[[variant]]
name = "greedy"
formats = ["onnx"]
steps = [
  { technique = "low_rank", rank = 6, epochs = 1 },
  { technique = "prune", kind = "magnitude", ratio = 0.99 },
  { technique = "quantize", mode = "fp16" },
]

[[variant]]
name = "idle"
formats = ["onnx"]
steps = [{ technique = "prune", ratio = 0.1, round_to = 16, types = { Linear = { skip = true } } }]

[[variant]]
name = "hopeless"
formats = ["onnx"]
steps = [{ technique = "prune", kind = "magnitude", ratio = 0.99 }]

[[variant]]
name = "stuck"
formats = ["onnx"]
steps = [{ technique = "distill", student = "compress_zoo:unexportable", samples = 32 }]
"""
)


def one(*steps, formats="onnx", name="v"):
    """A variant's table from the text of its steps."""
    quoted = ", ".join(f'"{format_}"' for format_ in formats.split())
    return f'\n[[variant]]\nname = "{name}"\nformats = [{quoted}]\nsteps = [{", ".join(steps)}]\n'
