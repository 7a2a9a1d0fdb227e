"""The plan: for each layer, how its weights and activations are represented, and why. A file to read and review."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from edgeq.numerics.scheme import DType, Granularity, Symmetry
from edgeq.registry.schema import Format, RuntimeName


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorPlan(_Strict):
    """An activation tensor: its type and the range that calibration gave it."""

    dtype: DType
    symmetry: Symmetry
    scale: float
    zero_point: int
    low: float
    high: float
    estimator: str
    """Which range estimator set it, or `fixed` (the runtime prescribes it) or `shared` (see `tied_to`)."""
    tied_to: str | None = None
    reason: str


class WeightPlan(_Strict):
    """A weight tensor: its type, and the hash of the integers that the artefact must store."""

    dtype: DType
    symmetry: Symmetry
    granularity: Granularity
    axis: int
    algorithm: str
    sha256: str
    """Over the int values in PyTorch's layout, then the float32 scales."""
    bias: Literal["int32", "int64", "float32"] | None = None


class LayerPlan(_Strict):
    """One fusion group: what runs as one kernel."""

    name: str
    op: str
    members: list[str]
    macs: int
    parameters: int
    precision: Literal["integer", "float32"]
    reason: str
    weight: WeightPlan | None = None
    output: TensorPlan | None = None


class Plan(_Strict):
    """What is to be built for one runtime of one target."""

    schema_version: Literal[1] = 1
    model_hash: str
    data_hash: str
    target: str
    runtime: RuntimeName
    format: Format
    inputs: dict[str, TensorPlan]
    layers: list[LayerPlan]
