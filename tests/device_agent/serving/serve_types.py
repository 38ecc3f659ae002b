"""A value at each end of every type, and one between."""

TYPES = {
    "BOOL": [True, False, True],
    "UINT8": [0, 1, 255],
    "UINT16": [0, 1, 65535],
    "UINT32": [0, 1, 2**32 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "INT8": [-128, 0, 127],
    "INT16": [-(2**15), 0, 2**15 - 1],
    "INT32": [-(2**31), 0, 2**31 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1],
    "FP16": [-65504.0, 0.5, 0.0009765625],
    "FP32": [-3.4028234663852886e38, 0.5, 9.999999682655225e-21],
    "FP64": [-1.7976931348623157e308, 0.1, 1e-300],
}
DTYPES = {name: name.lower().replace("fp", "float") for name in TYPES}
