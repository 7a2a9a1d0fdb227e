"""What each operator of the ONNX standard computes, in PyTorch. A new one is one line in the table of its family."""

from __future__ import annotations

from edgeq.frontends.onnx.operators.activations import ACTIVATIONS
from edgeq.frontends.onnx.operators.arithmetic import ARITHMETIC
from edgeq.frontends.onnx.operators.layers import LAYERS
from edgeq.frontends.onnx.operators.node import Table
from edgeq.frontends.onnx.operators.recurrent import RECURRENT
from edgeq.frontends.onnx.operators.reductions import REDUCTIONS
from edgeq.frontends.onnx.operators.resize import RESIZES
from edgeq.frontends.onnx.operators.shapes import SHAPES

OPERATORS: Table = {**ARITHMETIC, **ACTIVATIONS, **LAYERS, **SHAPES, **REDUCTIONS, **RESIZES, **RECURRENT}
