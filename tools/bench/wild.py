"""Architectures that people deploy, unlike one another: what of each goes through, and how near it stays to float.

    pip install timm transformers
    python tools/bench/wild.py --out build/wild                     # all; a Markdown table in build/wild/table.md
    python tools/bench/wild.py --out build/wild --peers swin gpt2   # some, beside the formats' own tools

Weights are random and running statistics are made to fit, so that nothing is fetched: accuracy means nothing here.
What counts is whether each format is built, and the SQNR of its worst output against the float module, measured here
in the format's own runtime. Inputs are smooth blobs, sine waves and random tokens. What was measured is kept in the
folder, and only the rest is run again; a network that is named is always run, and its peers' figures are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from peer_tools.job import Job
from peer_tools.process import make
from peer_tools.table import TOOLS

Array = NDArray[Any]
Inputs = dict[str, Array]

CALIBRATION, EVALUATION = 64, 24
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "tflite": "model.tflite"}
PEERS = {"onnx": "onnxruntime", "openvino": "nncf", "tflite": "ai-edge-quantizer"}
"""Each format's own tool."""


@dataclass(frozen=True)
class Architecture:
    """A network, the inputs that it takes, [N, ...] by name, and whether users would call it a transformer: some
    peers want to be told."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    transformer: bool = False


class FirstOutput(nn.Module):
    """A Hugging Face network with its inputs by position and the tensor that people read of it."""

    def __init__(self, network: nn.Module, names: Sequence[str], read: str) -> None:
        super().__init__()
        self.network, self.names, self.read = network, list(names), read

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = getattr(self.network(**dict(zip(self.names, inputs, strict=True))), self.read)
        return found


def images(size: int, channels: int = 3) -> Callable[[int], Inputs]:
    """Smooth blobs with a little noise, float32 [n, channels, size, size], about standard normal."""

    def draw(n: int) -> Inputs:
        random = np.random.default_rng(n)
        y, x = np.mgrid[0:size, 0:size] / size
        found = random.normal(0, 0.1, (n, channels, size, size))
        for i in range(n):
            for _ in range(6):
                cy, cx, wide = *random.uniform(0, 1, 2), random.uniform(0.05, 0.4)
                blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * wide**2))
                found[i] += random.normal(0, 1, (channels, 1, 1)) * blob
        return {"x": found.astype(np.float32)}

    return draw


def waves(length: int) -> Callable[[int], Inputs]:
    """Sums of sine waves, float32 [n, length]."""

    def draw(n: int) -> Inputs:
        random = np.random.default_rng(n)
        at = np.arange(length)
        parts = (
            random.uniform(0.1, 1, (n, 1)) * np.sin(2 * np.pi * at * random.uniform(0.002, 0.2, (n, 1)))
            for _ in range(6)
        )
        return {"x": (sum(parts) + random.normal(0, 0.02, (n, length))).astype(np.float32)}

    return draw


def spectra(bins: int, frames: int) -> Callable[[int], Inputs]:
    """Something like a log-mel spectrogram, float32 [n, bins, frames]."""
    return lambda n: {"x": images(max(bins, frames), 1)(n)["x"][:, 0, :bins, :frames]}


def tokens(words: int, length: int, *, mask: bool) -> Callable[[int], Inputs]:
    """Random tokens, int64 [n, length], and where asked for the mask of their padding."""

    def draw(n: int) -> Inputs:
        random = np.random.default_rng(n)
        found = {"input_ids": random.integers(3, words, (n, length))}
        if mask:
            found["attention_mask"] = (np.arange(length) < random.integers(length // 2, length + 1, (n, 1))).astype(
                "i8"
            )
        return found

    return draw


def timm(name: str, size: int = 96, *, transformer: bool = False, **options: Any) -> Architecture:
    """A network of timm's."""

    def build() -> nn.Module:
        import timm

        network: nn.Module = timm.create_model(name, num_classes=100, **options)
        return network

    return Architecture(build, images(size), transformer)


def hugging(
    name: str, inputs: Callable[[int], Inputs], read: str = "last_hidden_state", *, takes: str = "", **config: Any
) -> Architecture:
    """A network of transformers', by the names of its class and of what is read of its output.

    Args:
        takes: what it calls its only input, where that is not `x`'s name here.
    """

    def build() -> nn.Module:
        import transformers

        kind = getattr(transformers, name)
        options = {"attn_implementation": "sdpa"} if getattr(kind, "_supports_sdpa", False) else {}
        network = kind._from_config(kind.config_class(**config), **options)
        return FirstOutput(network, [takes] if takes else list(inputs(1)), read)

    return Architecture(build, inputs, transformer=True)


_BERT: dict[str, Any] = dict(
    vocab_size=500, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384
)
_GPT: dict[str, Any] = dict(vocab_size=500, use_cache=False)
_WORDS = tokens(500, 24, mask=True)

ARCHITECTURES: dict[str, Architecture] = {
    "mobilenetv3": timm("mobilenetv3_small_050"),
    "efficientnet": timm("efficientnet_b0"),
    "convnext": timm("convnext_atto"),
    "resnest": timm("resnest14d"),
    "ghostnet": timm("ghostnetv2_100"),
    "densenet": timm("densenet121", growth_rate=8),
    "hrnet": timm("hrnet_w18_small"),
    "nf_regnet": timm("nf_regnet_b0"),
    "fastvit": timm("fastvit_t8", size=128),
    "repvit": timm("repvit_m0_9"),
    "inception_next": timm("inception_next_atto"),
    "botnet": timm("botnet26t_256", size=128, img_size=128),
    "deit_distilled": timm("deit_tiny_distilled_patch16_224", transformer=True, img_size=96),
    "swin": timm(
        "swin_tiny_patch4_window7_224", 112, transformer=True, img_size=112, embed_dim=48, depths=(2, 2, 2, 2)
    ),
    "levit": timm("levit_128s", transformer=True, size=224),
    "mobilevit": timm("mobilevitv2_050", transformer=True, size=128),
    "efficientvit": timm("efficientvit_b0", transformer=True, size=128),
    "edgenext": timm("edgenext_xx_small", transformer=True, size=128),
    "xcit": timm("xcit_nano_12_p16_224", transformer=True, img_size=96),
    "mixer": timm("mixer_s32_224", img_size=96),
    "pvt": timm("pvt_v2_b0", transformer=True, size=128),
    "coatnet": timm("coatnet_pico_rw_224", transformer=True, size=128, img_size=128),
    "bert": hugging("BertModel", _WORDS, "pooler_output", **_BERT),
    "distilbert": hugging(
        "DistilBertForTokenClassification", _WORDS, "logits",
        vocab_size=500, dim=128, n_layers=3, n_heads=4, hidden_dim=384,
    ),
    "deberta": hugging("DebertaV2Model", _WORDS, relative_attention=True, pos_att_type=["p2c", "c2p"], **_BERT),
    "albert": hugging("AlbertModel", _WORDS, **_BERT, embedding_size=64),
    "gpt2": hugging("GPT2LMHeadModel", tokens(500, 24, mask=False), "logits", **_GPT, n_embd=128, n_layer=3, n_head=4),
    "llama": hugging(
        "LlamaForCausalLM", tokens(500, 24, mask=False), "logits",
        **_GPT, hidden_size=128, intermediate_size=344, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "t5_encoder": hugging(
        "T5EncoderModel", _WORDS,
        vocab_size=500, d_model=128, d_kv=32, d_ff=384, num_layers=3, num_heads=4,
    ),
    "whisper_encoder": hugging(
        "WhisperForAudioClassification", spectra(80, 200), "logits", takes="input_features",
        d_model=96, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=384, max_source_positions=100,
    ),
    "wav2vec2": hugging(
        "Wav2Vec2Model", waves(4000), takes="input_values",
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4, conv_dim=(64,) * 7,
    ),
    "segformer": hugging(
        "SegformerForSemanticSegmentation", images(128), "logits", takes="pixel_values",
        num_labels=12, depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 96], decoder_hidden_size=64,
    ),
    "clip_vision": hugging(
        "CLIPVisionModel", images(96), "pooler_output", takes="pixel_values",
        hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=96, patch_size=16,
    ),
}  # fmt: skip


# ---------------------------------------------------------------- a network as a user has it


def trained(architecture: Architecture) -> nn.Module:
    """The network with weights as if it had been trained: no gain is one, no bias and no head zero, since what starts
    so hides what a converter does to it, and running statistics fit the data."""
    torch.manual_seed(0)
    module = architecture.build()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif parameter.dim() == 1 and len(parameter) > 1 and bool((parameter == parameter[0]).all()):
                size = max(abs(float(parameter[0])), 0.2)
                if float(parameter[0]) == 0:
                    parameter.normal_(0, 0.1)
                else:
                    parameter.uniform_(0.5 * size, 1.5 * size)
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
            module.train()
            drawn = [torch.from_numpy(v) for v in architecture.inputs(CALIBRATION).values()]
            for _ in range(3):
                for start in range(0, CALIBRATION, 16):
                    module(*(v[start : start + 16] for v in drawn))
    return module.eval()


def exported(module: nn.Module, inputs: Inputs) -> tuple[torch.export.ExportedProgram, str]:
    """The network as a program, with a free batch if it can be had, or else why its batch is fixed."""
    example = tuple(torch.from_numpy(v[:2]) for v in inputs.values())
    batch = {0: torch.export.Dim("batch", min=1, max=256)}
    free, why = tuple(batch for _ in example), ""
    for shapes in ((free,), free):  # inputs that are collected into one argument, and those by name
        try:
            return torch.export.export(module, example, dynamic_shapes=shapes, strict=False), ""
        except Exception as error:  # torch.export raises many kinds
            why = f"{type(error).__name__}: {str(error)[:160]}"
    return torch.export.export(module, tuple(x[:1] for x in example), strict=False), why


# ---------------------------------------------------------------- what was built, in its own runtime


def run_onnx(path: Path, rows: Sequence[Inputs]) -> list[list[Array]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, _fed([i.name for i in session.get_inputs()], row)) for row in rows]


def run_openvino(path: Path, rows: Sequence[Inputs]) -> list[list[Array]]:
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [[np.array(done[o]) for o in model.outputs] for done in (model(list(row.values())) for row in rows)]


def run_tflite(path: Path, rows: Sequence[Inputs]) -> list[list[Array]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    signature = interpreter.get_signature_runner()
    takes, gives = signature.get_input_details(), signature.get_output_details()
    fed = ({k: _stored(v, takes[k]) for k, v in _fed(list(takes), row).items()} for row in rows)
    return [
        [_real(found[name], detail) for name, detail in gives.items()] for found in (signature(**row) for row in fed)
    ]


def _stored(real: Array, detail: Mapping[str, Any]) -> Array:
    """As a file whose inputs are integers wants them: peers quantize these too."""
    scale, zero_point = detail["quantization"]
    if scale:
        limits = np.iinfo(detail["dtype"])
        real = np.clip(np.rint(real / scale) + zero_point, limits.min, limits.max)
    return real.astype(detail["dtype"])


def _real(stored: Array, detail: Mapping[str, Any]) -> Array:
    scale, zero_point = detail["quantization"]
    return (stored.astype(np.float32) - zero_point) * np.float32(scale) if scale else stored


RUN = {"onnx": run_onnx, "openvino": run_openvino, "tflite": run_tflite}


def _fed(names: Sequence[str], row: Inputs) -> Inputs:
    """By the names of the file: peers give names of their own, in the same order or in that of the alphabet."""
    return row if set(names) == set(row) else dict(zip(names, row.values(), strict=True))


def worst_sqnr(want: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]) -> float:
    """dB of the output that is farthest from the float module's; each is looked for among all of the file's."""

    def one(output: int, other: int) -> float:
        a = np.concatenate([row[output].ravel() for row in want]).astype(np.float64)
        b = np.concatenate([row[other].ravel() for row in got]).astype(np.float64)
        if a.shape != b.shape or not np.isfinite(b).all():
            return -99.0
        return float(10 * np.log10(np.square(a).sum() / max(np.square(a - b).sum(), 1e-30)))

    return min(max(one(output, other) for other in range(len(got[0]))) for output in range(len(want[0])))


# ---------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Case:
    """One architecture as the files that edgeq takes, and what its artefacts are to give.

    Attributes:
        folder: holds `model.pt2`, `calib.npz` and `eval.npz`.
        rows: the evaluation samples, one by one.
        want: by sample, what the float module gives.
    """

    folder: Path
    transformer: bool
    rows: list[Inputs]
    want: list[list[Array]]
    about: dict[str, Any]


def prepared(name: str, folder: Path) -> Case:
    architecture = ARCHITECTURES[name]
    module = trained(architecture)
    calibration = architecture.inputs(CALIBRATION)
    program, fixed = exported(module, calibration)

    def named(arrays: Inputs) -> Inputs:
        return dict(zip(program.graph_signature.user_inputs, arrays.values(), strict=True))

    calibration, evaluation = named(calibration), named(architecture.inputs(EVALUATION))
    rows = [{k: v[i : i + 1] for k, v in evaluation.items()} for i in range(EVALUATION)]
    with torch.no_grad():
        found = [module(*(torch.from_numpy(v) for v in row.values())) for row in rows]
    want = [[t.numpy() for t in (f if isinstance(f, tuple | list) else [f])] for f in found]
    torch.export.save(program, folder / "model.pt2")
    np.savez(folder / "calib.npz", **calibration)
    np.savez(folder / "eval.npz", **evaluation)
    about = {"parameters": sum(p.numel() for p in module.parameters()), "batch fixed because": fixed}
    return Case(folder, architecture.transformer, rows, want, about)


def by_edgeq(case: Case) -> dict[str, Any]:
    """By format, the dB of edgeq's artefact, or why there is none."""
    out, folder = case.folder / "build", case.folder
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "edgeq.cli", "deploy", str(folder / "model.pt2"), "--target", "x86-avx512",
         "--format", "all", "--calib", str(folder / "calib.npz"), "--eval", str(folder / "eval.npz"),
         "--allow-slower", "--json", "--out", str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = {"error": {"cause": done.stderr[-300:]}}
    said = {b["format"]: b.get("error") for b in report.get("builds", [])}
    found = {
        form: _judged(form, out / file, case, said.get(form) or report.get("error") or "missing")
        for form, file in FILES.items()
    }
    return {"seconds": round(time.monotonic() - start), "exit": done.returncode, **found}


def by_peers(case: Case) -> dict[str, Any]:
    """By format, the dB of its own tool's artefact, or why there is none."""
    result = {}
    for form, file in FILES.items():
        path = case.folder.resolve() / f"peer-{form}" / file
        shutil.rmtree(path.parent, ignore_errors=True)
        tool = TOOLS[PEERS[form]]
        options = {"transformer": True} if case.transformer and form == "openvino" else {}
        job = Job(case.folder.resolve() / "model.pt2", case.folder.resolve() / "calib.npz", path, form, options=options)
        made = make(tool, job, case.folder.parent / "environments")
        result[f"peer {form}"] = _judged(form, path, case, made.error)
    return result


def _judged(form: str, path: Path, case: Case, why: Any) -> float | str:
    if not path.exists():
        return str(why["cause"] if isinstance(why, Mapping) else why)[:200]
    try:
        return round(worst_sqnr(case.want, RUN[form](path, case.rows)), 1)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]}"


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row for each architecture, dB of its worst output in each format, of a peer's file in brackets."""

    def cell(row: Mapping[str, Any], form: str) -> str:
        ours, theirs = row[form], row.get(f"peer {form}")
        text = f"{ours:.1f}" if isinstance(ours, float) else "none"
        return text if theirs is None else f"{text} ({theirs:.1f})" if isinstance(theirs, float) else f"{text} (none)"

    lines = [f"| network | parameters | {' | '.join(FILES)} | seconds |", "|---|---|" + "---|" * (len(FILES) + 1)]
    for name, row in results.items():
        cells = " | ".join(cell(row, form) for form in FILES)
        lines.append(f"| {name} | {row['parameters'] / 1e6:.2f} M | {cells} | {row['seconds']} |")
    built = {form: sum(isinstance(row[form], float) for row in results.values()) for form in FILES}
    lines += ["", f"Built: {', '.join(f'{form} {count} of {len(results)}' for form, count in built.items())}.", ""]
    reasons = [(n, f, row[f]) for n, row in results.items() for f in row if f.endswith(tuple(FILES))]
    return "\n".join([*lines, *(f"- {n}, {f}: {why}" for n, f, why in reasons if isinstance(why, str))]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of " + ", ".join(ARCHITECTURES))
    parser.add_argument("--out", type=Path, required=True, help="folder for results; those that are there are kept")
    parser.add_argument("--peers", action="store_true", help="also by the formats' own tools")
    asked = parser.parse_args()
    unknown = set(asked.names) - set(ARCHITECTURES)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    results = {}
    for name in asked.names or ARCHITECTURES:
        folder = asked.out / name
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "result.json"
        earlier = json.loads(kept.read_text()) if kept.exists() else {}
        if asked.names or not earlier:
            case = prepared(name, folder)
            theirs = by_peers(case) if asked.peers else {k: v for k, v in earlier.items() if k.startswith("peer ")}
            kept.write_text(json.dumps({**case.about, **by_edgeq(case), **theirs}))
        results[name] = json.loads(kept.read_text())
        print(name, {form: results[name][form] for form in FILES}, flush=True)
    (asked.out / "table.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
