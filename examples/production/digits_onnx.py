#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""Writes the digits network as an ONNX file, with nothing but the standard library.

    digits_onnx.py DIGITS_MLP_TXT DIGITS_ONNX

An ONNX file is one protocol buffer, ModelProto. Of that format three things are needed: a field is its number and kind,
then its value; a whole number is 7 bits in each byte, the lowest first; all else is its length, then its bytes. The
numbers of the fields are those of onnx.proto."""

import array
import sys


def varint(number):
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


FLOAT, INT = 1, 2  # of TensorProto.DataType and of AttributeProto.AttributeType


def tensor(name, shape, values):
    dims = b"".join(field(1, size) for size in shape)
    raw = array.array("f", values)
    if sys.byteorder == "big":
        raw.byteswap()
    return dims + field(2, FLOAT) + field(8, name) + field(9, raw.tobytes())


def node(operation, inputs, output, **attributes):
    """ONNX names a node by what comes out of it."""
    encoded = b"".join(field(1, each) for each in inputs) + field(2, output) + field(3, output) + field(4, operation)
    for name, value in attributes.items():
        encoded += field(5, field(1, name) + field(3, value) + field(20, INT))
    return encoded


def value(name, *shape):
    """A tensor of floats; a size that is a word may be any."""
    dims = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, dims)))


source, target = sys.argv[1:3]
with open(source) as file:
    kind, inputs, hidden, outputs = file.readline().split()
    rows = [list(map(float, line.split())) for line in file]
inputs, hidden, outputs = int(inputs), int(hidden), int(outputs)
if kind != "mlp" or len(rows) != hidden + 1 + outputs + 1:
    sys.exit(f"{source}: not the network that is expected; see examples/digits.hpp")


def layer(number, rows_of_weights, bias):
    columns = len(rows_of_weights[0])
    flat = [weight for row in rows_of_weights for weight in row]
    return [tensor(f"w{number}", (len(bias), columns), flat), tensor(f"b{number}", (len(bias),), bias)]


tensors = layer(1, rows[:hidden], rows[hidden]) + layer(2, rows[hidden + 1:-1], rows[-1])
nodes = [
    node("Gemm", ["pixels", "w1", "b1"], "sums", transB=1),  # pixels * transposed weights + bias
    node("Relu", ["sums"], "hidden"),
    node("Gemm", ["hidden", "w2", "b2"], "logits", transB=1),
]
graph = (b"".join(field(1, each) for each in nodes) + field(2, "digits") + b"".join(field(5, each) for each in tensors) +
         field(11, value("pixels", "images", inputs)) + field(12, value("logits", "images", outputs)))
operators = field(1, "") + field(2, 13)  # the version of ONNX' own operators
model = field(1, 7) + field(2, "digits_onnx.py") + field(7, graph) + field(8, operators)
with open(target, "wb") as file:
    file.write(model)
