"""What each operator of TFLite computes, in PyTorch. A new one is one line in the table of its family."""

from __future__ import annotations

from edgeq.frontends.tflite.operators.arithmetic import ARITHMETIC
from edgeq.frontends.tflite.operators.layers import LAYERS
from edgeq.frontends.tflite.operators.node import Table
from edgeq.frontends.tflite.operators.shapes import SHAPES

OPERATORS: Table = {**ARITHMETIC, **LAYERS, **SHAPES}
