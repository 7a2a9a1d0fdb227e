"""What a target file and a profile file may say. Unknown keys are refused; every figure names its source."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from edgeq.formats import FORMATS
from edgeq.numerics.scheme import DType, Granularity, Levels, Scheme, Symmetry
from edgeq.registry import figures as known
from edgeq.runtimes import NOT_RUN, RUNTIMES

OpClass = Literal[
    "conv1d", "conv2d", "conv3d", "depthwise_conv2d", "conv_transpose2d", "linear", "matmul",
    "add", "sub", "mul", "relu", "relu6", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "silu", "gelu",
    "leaky_relu", "prelu", "softmax", "layer_norm", "max_pool2d", "avg_pool2d", "mean",
    "concat", "pad", "reshape", "transpose", "slice", "resize_nearest", "resize_bilinear", "embedding",
]  # fmt: skip


def _one_of(known: Collection[str]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in known:
            expected = ", ".join(map(repr, known))
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return name

    return check


Format = Annotated[str, AfterValidator(_one_of(FORMATS))]
RuntimeName = Annotated[str, AfterValidator(lambda name: _one_of([*RUNTIMES, *NOT_RUN])(name))]


_FLOATS = ("float16", "bfloat16", "float32")

_LEVELLED = {(dtype, "symmetric", "channel", None) for dtype in ("uint2", "uint4")}


def _bits(dtype: DType) -> str:
    return dtype.lstrip("abcdefghijklmnopqrstuvwxyz")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kernel(_Strict):
    """One native kernel family: operators that run with these integer types, without falling back to float.

    One with float `activations` is weight-only: the file stores integers, and the runtime computes in float. One that
    is `dynamic` reads and writes float as well, and computes on integers in between.
    """

    ops: Annotated[list[OpClass], Field(min_length=1)]
    activations: DType
    activation_symmetry: Symmetry = "asymmetric"
    dynamic: Literal["tensor", "row"] | Annotated[int, Field(gt=1)] | None = None
    """Its input is rounded in every call, by a scale of the values that are there: one for the whole `tensor`, for each
    `row` of it, or for so many numbers of a row. Nothing is calibrated."""
    weights: DType | None = None
    weight_symmetry: Symmetry = "symmetric"
    weight_granularity: Granularity = "channel"
    weight_group: Annotated[int, Field(gt=1)] | None = None
    """Weights that share a scale, along the row of an output, where the granularity is `group`."""
    weight_levels: Levels | None = None
    """Of weights alone: levels that are not evenly spaced, a scale for each channel; `weights` holds their places."""
    expanded_at_load: bool = False
    """Of weights alone: the runtime makes all of them float when it loads the file. They save bytes of the file, and no
    memory and no time."""
    weight_narrow: bool = False
    weight_bits: int | None = None
    only_named: bool = False
    """It costs as much as another kernel and keeps less: no plan takes it by itself, and a layer gets it by name."""
    bias: Literal["int32", "int64", "float32"] | None = None
    accumulator: Literal["int16-saturating", "int32", "int64", "float16", "float32"] = "int32"
    power_of_two: bool = False
    steps: Annotated[int, Field(gt=1)] | None = None
    """Of its output, how many it may be off from exact arithmetic, where that is more than rounding: some processors
    keep fewer bits of a sum than 16-bit values have."""
    source: str

    @property
    def name(self) -> str:
        """What plans call it: `w4a8` for 4-bit weights and 8-bit activations, `a8` without weights, `w4` where the
        activations stay in float, `w4g32` where 32 weights share a scale, `w4asym` where weights have a zero point,
        `w4codebook` or `w4pow2` by the levels that they have, `w8a8dyn` where the input is rounded in every call,
        `w7a8` for one beside `w8a8` that uses 7 of its 8 bits.
        `edgeq.lowering.form` reads these names."""
        bits = self.weight_bits if self.only_named else None
        weights = "" if self.weights is None else f"w{bits or _bits(self.weights)}"
        group = "" if self.weight_group is None else f"g{self.weight_group}"
        zero = "asym" if self.weights is not None and self.weight_symmetry == "asymmetric" else ""
        dynamic = "" if self.dynamic is None else "dyn"
        activations = "" if self.weight_only else f"a{_bits(self.activations)}{dynamic}"
        return weights + group + zero + (self.weight_levels or "") + activations

    @property
    def weight_only(self) -> bool:
        """Whether the activations stay in float."""
        return self.activations in _FLOATS

    @property
    def float_ends(self) -> bool:
        """Whether it reads and writes float: weight-only, or dynamic."""
        return self.weight_only or self.dynamic is not None

    @property
    def activation_scheme(self) -> Scheme:
        return Scheme(self.activations, self.activation_symmetry, power_of_two=self.power_of_two)

    @property
    def weight_scheme(self) -> Scheme | None:
        if self.weights is None:
            return None
        return Scheme(
            self.weights,
            self.weight_symmetry,
            self.weight_granularity,
            self.weight_narrow,
            self.power_of_two,
            self.weight_bits,
            self.weight_group,
            self.weight_levels,
        )

    @model_validator(mode="after")
    def _group_has_a_size(self) -> Kernel:
        if (self.weight_granularity == "group") != (self.weight_group is not None):
            raise ValueError('weight_granularity = "group" and weight_group = 32 (or another size) go together')
        if self.float_ends and self.weights is None:
            raise ValueError("float activations without integer weights are no kernel of a table")
        if self.dynamic is not None and (self.weight_only or self.bias != "float32"):
            raise ValueError("a dynamic kernel rounds activations to integers, and adds a float32 bias")
        return self

    @model_validator(mode="after")
    def _levels_have_places(self) -> Kernel:
        kind = self.weights, self.weight_symmetry, self.weight_granularity, self.weight_bits
        if self.weight_levels is not None and not (self.weight_only and kind in _LEVELLED):
            raise ValueError(
                "weight_levels goes with float activations and symmetric uint2 or uint4, a scale a channel"
            )
        return self


class DecoderChoice(NamedTuple):
    """What a matrix of a language model may be stored as, and whether what it is multiplied by is rounded to 8 bits in
    every call, with a scale for as many numbers as share one in the weights."""

    scheme: Scheme
    dynamic: bool


class Decoders(_Strict):
    """Weights of language models that decode, as a runtime reads them in a file with a key-value cache: numbers of a
    row share a scale by groups."""

    ops: Annotated[list[Literal["linear", "embedding"]], Field(min_length=1)]
    bits: Annotated[list[Literal[2, 3, 4, 8]], Field(min_length=1)]
    groups: Annotated[list[Annotated[int, Field(gt=1)]], Field(min_length=1)]
    symmetries: Annotated[list[Symmetry], Field(min_length=1)]
    activations: Literal["float32", "int8"] = "float32"
    """What products read: float, or 8 bits that it is rounded to in every call."""
    scales: Literal["float16", "float32"] = "float32"
    expanded_at_load: bool = False
    """The runtime makes all of them float when it loads the file: they save bytes of it, and no memory or time."""
    source: Annotated[str, Field(min_length=1)]

    @property
    def choices(self) -> dict[str, DecoderChoice]:
        """By the name that plans have: `w4g32`, `w4g32asym` with a zero point for each group, `w4g32a8dyn`."""
        dynamic = self.activations == "int8"
        return {
            f"w{bits}g{group}{'asym' if symmetry == 'asymmetric' else ''}{'a8dyn' if dynamic else ''}": DecoderChoice(
                Scheme(
                    _STORED[bits, symmetry],
                    symmetry,
                    "group",
                    bits=bits if bits == 3 else None,
                    group=group,
                    half_scales=self.scales == "float16",
                ),
                dynamic,
            )
            for bits in self.bits
            for group in self.groups
            for symmetry in self.symmetries
        }


_STORED: dict[tuple[int, Symmetry], DType] = {
    (2, "symmetric"): "int2", (3, "symmetric"): "int4", (4, "symmetric"): "int4", (8, "symmetric"): "int8",
    (2, "asymmetric"): "uint2", (3, "asymmetric"): "uint4", (4, "asymmetric"): "uint4", (8, "asymmetric"): "uint8",
}  # fmt: skip


class FixedOutput(_Strict):
    """An operator whose output scale and zero point the runtime prescribes."""

    op: OpClass
    dtype: DType
    scale: float
    zero_point: int


class Runtime(_Strict):
    """One runtime of a target, and what it can run natively through its file format."""

    name: RuntimeName
    format: Format
    extra: str | None = None
    on_request: bool = False
    """Nothing is built for it but where its format is asked for, or all of them."""
    io: Literal["float", "integer"] = "float"
    shared_scale: list[OpClass] = []
    """Operators whose inputs and output carry one scale and zero point."""
    fixed_outputs: list[FixedOutput] = []
    fused_activations: list[OpClass] = ["relu", "relu6"]
    """Activations that run inside the kernel of the convolution, linear or addition before them."""
    float_outputs: list[OpClass] = []
    """Operators whose integer kernel can write float, so that a model's output need not be rounded."""
    float_alternatives: list[Literal["bfloat16", "float16"]] = []
    """Reduced-precision float modes to measure beside float32."""
    rounds_float_layers: bool = False
    """The runtime rounds the weights of float layers between quantized tensors by itself, unless it is kept from it."""
    shuffles_transposed: bool = False
    """Its integer kernel for conv_transpose2d is that for convolutions, behind which values are shuffled into place."""
    one_sample: bool = False
    """Its files have to say all sizes, so that a call takes one sample."""
    reads_low_bits: bool = False
    """Its integer kernels read weights of fewer than 8 bits as the file stores them. Others are made 8 bits at load."""
    dequantizes_blocks: bool = False
    """It reads weights alone, that share scales by groups, under a DequantizeLinear with a `block_size`. Others compute
    that one in every call, so that their files hold a Cast and a Mul."""
    wrong_convolutions: bool = False
    """On some CPUs it computes some convolutions on integers wrong (see `computed_wrong` in `lowering/assign.py`)."""
    kernels: Annotated[list[Kernel], Field(min_length=1)]
    """In order of preference: the first that lists an operator is its default."""
    decoders: list[Decoders] = []
    """What it runs of language models; empty where it runs none."""

    def decoder_choices(self, op: Literal["linear", "embedding"]) -> dict[str, DecoderChoice]:
        """Of language models, what the weights of an operator may be stored as, by name, the preferred ones first."""
        return {name: choice for one in self.decoders if op in one.ops for name, choice in one.choices.items()}

    @property
    def ops(self) -> set[str]:
        """The operator classes that it has a kernel for, of whatever kind."""
        return {op for kernel in self.kernels for op in kernel.ops}

    def kernel(self, op: str, name: str | None = None) -> Kernel | None:
        """The kernel of an operator class with this name, or the preferred one; None where there is none.

        The preferred one reads and writes integers: one that stores them between floats has to be asked for.
        """
        listed = (k for k in self.kernels if op in k.ops)
        return next((k for k in listed if (not k.float_ends if name is None else k.name == name)), None)


class Cpu(_Strict):
    """Instruction sets that tell a target's CPUs from others, by the names of `edgeq.on_device.worker.ISA`."""

    has: list[str] = []
    lacks: list[str] = []


class Target(_Strict):
    """What a class of silicon can run, as seen through its runtimes, best first."""

    schema_version: Literal[1] = Field(1, alias="schema")
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    summary: str
    execution: Literal["local", "qemu-aarch64", "qemu-x86_64", "qnn-emulator", "tflite-micro", "none"]
    """How artefacts for this target can be executed from this machine; `none`: exported, not validated."""
    default_profile: str | None = None
    cpu: Cpu = Cpu()
    notes: list[str] = []
    runtimes: Annotated[list[Runtime], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_of_each(self) -> Target:
        names = [r.name for r in self.runtimes]
        if len(set(names)) != len(names):
            raise ValueError(f"a runtime is listed twice: {names}")
        return self


class Figure(_Strict):
    """A number with its unit, whether it was measured here or taken from elsewhere, and from where."""

    value: float
    unit: str
    how: Literal["measured", "modelled", "datasheet"]
    source: str


class VelaSystem(_Strict):
    """How Vela, the compiler for Arm's Ethos-U, calls the device: `--accelerator-config` and so on."""

    accelerator: str
    system: str
    memory: str
    config: str = "Arm/vela.ini"
    """The file that defines the last two: one that Vela ships, or a path."""


class QnnSystem(_Strict):
    """How Qualcomm's library calls the processor that it compiles for."""

    soc_model: Annotated[str, Field(pattern=r"^[0-9]+$")]
    htp_arch: Annotated[str, Field(pattern=r"^[0-9]+$")]


class Profile(_Strict):
    """One concrete device of a target."""

    schema_version: Literal[1] = Field(1, alias="schema")
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    target: str
    summary: str
    link: Literal["local", "qemu", "ssh", "adb", "serial", "none"]
    cores: Figure | None = None
    clock: Figure | None = None
    memory: Figure | None = None
    bandwidth: Figure | None = None
    figures: dict[str, Figure] = {}
    """Any; those that time and energy are modelled from have names of their own (`edgeq.registry.figures`)."""
    vela: VelaSystem | None = None
    qnn: QnnSystem | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _units(self) -> Profile:
        given = {"clock": self.clock, "bandwidth": self.bandwidth} | self.figures
        for name, figure in given.items():
            if figure is not None and (wrong := known.problem(name, figure.value, figure.unit)):
                raise ValueError(wrong)
        return self


def arithmetic(runtime: Runtime) -> dict[str, Any]:
    """Of a runtime, what decides which values an artefact stores: not how a target file knows it, nor what runs it."""
    others = dict.fromkeys(("extra", "on_request", "float_alternatives", "rounds_float_layers", "decoders"), True)
    return runtime.model_dump(
        mode="json", exclude={**others, "kernels": {"__all__": {"source", "accumulator", "expanded_at_load"}}}
    )
