"""Options that several commands take, as types for their signatures: one option each, or a group (see `command`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgeq.formats import FORMATS

_MODEL = "Model"
_DATA = "Data"
_RUN = "Where and how it runs"
_LIMITS = "Limits"
_EVALUATION = typer.Option(
    "--eval",
    metavar="DATA",
    help="Samples with labels to judge by: .npz, .npy, a folder of images, or package.module:function.",
    rich_help_panel=_DATA,
)

ModelFile = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .pt2, TorchScript, torch.save, safetensors, ONNX, TFLite or Keras file, a SavedModel or a Hugging Face "
        "folder.",
    ),
]

Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        metavar="SPEC",
        help="\\[name:]shape\\[:dtype] of an input, once for each, where the file has none: 1x3x224x224.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="PKG.MOD:FN",
        help="Function that builds the network, for files that hold weights alone.",
        rich_help_panel=_MODEL,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Let the file run the code that it carries. Only for files of people you trust.",
        rich_help_panel=_MODEL,
    ),
]


class SmoothChoice(str, Enum):
    """Whether SmoothQuant is applied where it helps."""

    auto = "auto"
    off = "off"


SmoothQuant = Annotated[
    SmoothChoice,
    typer.Option(
        "--smooth-quant",
        help="SmoothQuant on what linear layers of a transformer read: where it helps, or nowhere.",
        rich_help_panel=_MODEL,
    ),
]


class EffortChoice(str, Enum):
    """How much is tried for a better rounding."""

    fast = "fast"
    balanced = "balanced"
    max = "max"


EffortOption = Annotated[
    EffortChoice | None,
    typer.Option(
        "--effort",
        help="How much is tried for a better rounding; what held-out samples do not speak for is undone.",
        rich_help_panel=_MODEL,
        show_default="balanced, or what the plan says",
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="How all weights are rounded, whatever the effort: nearest, gptq, hqq, awq-clip, squeezellm, twn, "
        "xnor, binaryconnect, re-estimate, reconstruct, distil.",
        rich_help_panel=_MODEL,
    ),
]
TargetName = Annotated[
    str, typer.Option("--target", metavar="T", help="What to build for: a name from `edgeq targets`, or a .toml file.")
]
Evaluation = Annotated[str | None, _EVALUATION]
_CALIBRATION = typer.Option(
    "--calib",
    metavar="DATA",
    help="Samples to set ranges by: .npz, .npy, a folder of images, texts, or package.module:function; "
    "or synthetic, to make them from the model's batch norms.",
    rich_help_panel=_DATA,
)
Calibration = Annotated[str | None, _CALIBRATION]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        help="How images become values: imagenet, cifar10, [0,1], or a TOML file; for texts, a tokenizer's folder.",
        rich_help_panel=_DATA,
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="M",
        help="top-5, mean-iou, spearman, perplexity, coco:DETECTOR.toml, or your own PKG.MOD:FN(outputs, labels). "
        "Without it, top-1 where there are labels.",
        rich_help_panel=_DATA,
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="D",
        help="A name from `edgeq device list`, such as local or arm64:cortex-a53.",
        rich_help_panel=_RUN,
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option("--profile", metavar="P", help="A device of the target, by name or .toml file.", rich_help_panel=_RUN),
]
Threads = Annotated[
    int, typer.Option("--threads", min=1, max=1024, metavar="N", help="Threads of the runtime.", rich_help_panel=_RUN)
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        metavar="N",
        help="Processes for builds and sensitivities; the plan is the same. Timing is never spread.",
        rich_help_panel=_RUN,
        show_default="none but this one",
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="E",
        help="ray to start a Ray cluster on this machine, ray://host:port to join one.",
        rich_help_panel=_RUN,
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        metavar="1%", help="Most accuracy that may be lost; 0.5 is in units of the metric.", rich_help_panel=_LIMITS
    ),
]
MaxLatency = Annotated[str | None, typer.Option(metavar="2ms", help="Longest median latency.", rich_help_panel=_LIMITS)]
MaxSize = Annotated[
    str | None, typer.Option(metavar="4MB", help="Most bytes of the artefact's files.", rich_help_panel=_LIMITS)
]
MaxFallback = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Most operators that may run on the CPU beside an accelerator.",
        rich_help_panel=_LIMITS,
    ),
]
MinSpeedup = Annotated[
    str | None,
    typer.Option(metavar="1.5x", help="Least speed beside the best float baseline.", rich_help_panel=_LIMITS),
]
AllowSlower = Annotated[
    bool,
    typer.Option(
        "--allow-slower", help="Pass an artefact that is slower than float, and say so.", rich_help_panel=_LIMITS
    ),
]


AllowUnrecognizable = Annotated[
    bool,
    typer.Option(
        "--allow-unrecognizable",
        help="Pass an artefact whose worst output is under 6 dB, or gives under half of the answers.",
        rich_help_panel=_LIMITS,
    ),
]


@dataclass(frozen=True)
class Reading:
    """How a model and its data are read."""

    preprocess: Preprocess = None
    inputs: Inputs = ()  # type: ignore[assignment]  # a dataclass takes no list
    arch: Arch = None
    trust_pickle: TrustPickle = False


@dataclass(frozen=True)
class Judging(Reading):
    """Also how answers are judged."""

    metric: MetricName = None


_LANGUAGE = "Language models"


@dataclass(frozen=True)
class Language:
    """What the weights of a language model are stored as."""

    weights: Annotated[
        str | None,
        typer.Option(
            metavar="w4g32",
            help="Of linear layers: bits and group, such as w4g32, w8g64, w4g128asym; float32 to keep them.",
            rich_help_panel=_LANGUAGE,
        ),
    ] = None
    words: Annotated[
        str | None,
        typer.Option(
            metavar="w8g32",
            help="Of the table of words, and of the layer that scores words.",
            rich_help_panel=_LANGUAGE,
        ),
    ] = None


@dataclass(frozen=True)
class Tasks:
    """What a build of a language model is asked by lm-evaluation-harness."""

    lm_eval: Annotated[
        list[str],
        typer.Option(
            "--lm-eval",
            metavar="TASK",
            help="A task of lm-evaluation-harness, once for each, in place of --eval. Nothing is fetched.",
            rich_help_panel=_LANGUAGE,
            show_default=False,
        ),
    ] = ()  # type: ignore[assignment]  # a dataclass takes no list
    tasks_from: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder with the tasks' YAML files, and their data.", rich_help_panel=_LANGUAGE
        ),
    ] = None
    trust_tasks: Annotated[
        bool,
        typer.Option(
            "--trust-tasks",
            help="Let the tasks of that folder run their code. Only for those of people you trust.",
            rich_help_panel=_LANGUAGE,
        ),
    ] = False


@dataclass(frozen=True)
class PlanLimits:
    """What a plan is held against."""

    max_drop: MaxDrop = None
    max_latency: MaxLatency = None
    max_size: MaxSize = None
    allow_unrecognizable: AllowUnrecognizable = False


@dataclass(frozen=True)
class BuildLimits(PlanLimits):
    """What a build is held against."""

    min_speedup: MinSpeedup = None
    max_fallback: MaxFallback = None
    allow_slower: AllowSlower = False


def _known_format(name: str) -> str:
    if name not in ("auto", "all", *FORMATS):
        raise typer.BadParameter(f"{name!r} is not one of auto, all, {', '.join(FORMATS)}.")
    return name


FormatName = Annotated[
    str,
    typer.Option(
        metavar=f"[auto|all|{'|'.join(FORMATS)}]",
        callback=_known_format,
        help="The best format of the target, all of its formats, or one.",
    ),
]


class IoChoice(str, Enum):
    """Types at the model's ends."""

    float = "float"
    int8 = "int8"
