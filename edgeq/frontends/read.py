"""From whatever holds a trained network to one exported program: files of several kinds, or a module in memory."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.export import ExportedProgram

from edgeq.errors import UnsupportedError, UsageError
from edgeq.files import sha256_file
from edgeq.frontends.archive import rebuilt
from edgeq.frontends.deadline import within_reason
from edgeq.frontends.examples import Given, asked_for
from edgeq.frontends.exported import from_program, read_export
from edgeq.frontends.kinds import identify
from edgeq.frontends.loaded import Kind, Loaded, sha256_program
from edgeq.frontends.onnx.recognise import is_onnx, sha256_onnx
from edgeq.frontends.pickles import unpickle
from edgeq.frontends.safetensors import read_safetensors
from edgeq.frontends.tensorflow.recognise import is_keras, is_saved_model, sha256_folder
from edgeq.frontends.tflite.file import is_tflite
from edgeq.frontends.torchscript import from_script, read_script
from edgeq.frontends.trace import from_module
from edgeq.frontends.weights import in_network, unwrap
from edgeq.hugging_face.folder import is_hf_folder, read_folder

# Loggers on which PyTorch reports what reaches the user as an error of ours, or does not concern them.
_CHATTY = (
    "torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize", "torch._export.converter",
    "torch._subclasses.fake_tensor", "torch.export._trace", "torch.fx.experimental.symbolic_shapes", "torch._dynamo",
)  # fmt: skip


class Asked(NamedTuple):
    """What the user says beside a file.

    Attributes:
        given: samples or shapes of inputs, for files that carry none.
        arch: what builds the network of a file that holds weights alone.
        trust: whether a file may run the code that it carries.
    """

    given: Given
    arch: str | None
    trust: bool


class Frontend(NamedTuple):
    """One kind of model files (docs/frontends.md).

    Attributes:
        name: for people.
        recognises: whether a path leads to one: by what a file begins with (`head_of`), or by what lies in a folder.
            Names of models play no part.
        read: the program in it. Code from the file runs only where the user trusts it; what is wrong with it is a
            UsageError, what cannot be exported an UnsupportedError.
        sha256: of all that is read.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Asked], Loaded]
    sha256: Callable[[Path], str] = sha256_file


def read(
    source: str | Path | torch.nn.Module | ExportedProgram,
    *,
    inputs: Sequence[str] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    example: tuple[torch.Tensor, ...] | None = None,
) -> Loaded:
    """Load a network from a file or from memory as an exported program in inference mode.

    Args:
        source: a file, told apart by its content: torch.export's `.pt2`, TorchScript, a `torch.save` file of weights or
            of a whole module, safetensors; a folder of Hugging Face's; or a module or an exported program.
        inputs: for what carries no shapes: one `[name:]shape[:dtype]` an input, such as `1x3x224x224` or
            `tokens:1x256:int64`.
        arch: `package.module:factory`, called without arguments, for files that hold weights alone.
        trust_pickle: allow a file to run the code that it carries. Only for files of people you trust.
        example: sample inputs, instead of `inputs`.

    Raises:
        UsageError: no such file, not a model, damaged, needs trust, or an argument is missing or wrong.
        UnsupportedError: the network does something that cannot be exported, or is not in float32.
    """
    given = asked_for(inputs, example)
    with quiet():
        if isinstance(source, ExportedProgram):
            loaded = from_program(source, given, "program")
        elif isinstance(source, torch.nn.Module):
            loaded = _from_module(source, given, "module")
        else:
            path = Path(source)
            with contextlib.nullcontext() if trust_pickle else within_reason(path.name):
                asked = Asked(given, arch, trust_pickle)
                frontend = next(one for one in FRONTENDS if one.recognises(path))
                return replace(frontend.read(path, asked), sha256=frontend.sha256(path))
        return replace(loaded, sha256=sha256_program(loaded.program))


def _from_pytorch(path: Path, asked: Asked) -> Loaded:
    given, arch, trust = asked
    where = path.name
    found = identify(path)
    with rebuilt(path, found) as file:
        if found.content == "torch.export":
            return from_program(read_export(file, found, trust), given, where)
        if found.content == "torchscript":
            return from_script(read_script(file, trust), given, where)
        read_tensors = (
            read_safetensors if found.content == "safetensors" else partial(unpickle, found=found, trust=trust)
        )
        content, chosen = unwrap(read_tensors(file), where)
    notes: tuple[str, ...] = ()
    if found.content != "pickle":
        notes = ("files of this kind carry no checksum: damage to the weights cannot be noticed",)
    kind: Kind = "pickled module" if isinstance(content, torch.nn.Module) else "state_dict"
    if isinstance(content, torch.jit.ScriptModule):
        raise UnsupportedError("it holds a scripted module", remedy="save it with torch.jit.save", where=where)
    module, more = (content, ()) if isinstance(content, torch.nn.Module) else in_network(content, arch, where)
    notes += (*chosen, *more)
    loaded = _from_module(module, given, where)
    return replace(loaded, kind=kind, notes=notes + loaded.notes)


def _from_module(module: torch.nn.Module, given: Given, where: str) -> Loaded:
    if isinstance(module, torch.jit.ScriptModule):
        return from_script(module, given, where)
    return from_module(module, given, where)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's warnings and log lines to itself, for the duration."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in _CHATTY]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.addFilter(drop)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(drop)


def _from_hugging_face(path: Path, asked: Asked) -> Loaded:
    from edgeq.frontends.hugging_face import read_hugging_face  # late: an extra

    if asked.arch is not None:
        raise UsageError("a folder says itself what its network is", where=path.name, remedy="leave --arch away")
    return read_hugging_face(path, asked.given, asked.trust)


def _from_onnx(path: Path, asked: Asked) -> Loaded:
    from edgeq.frontends.onnx.read import read_onnx  # late: it takes a while

    _refuse_arch(path, asked)
    return read_onnx(path, asked.given)


def _from_tflite(path: Path, asked: Asked) -> Loaded:
    from edgeq.frontends.tflite.read import read_tflite  # late: an extra

    _refuse_arch(path, asked)
    return read_tflite(path, asked.given)


def _from_tensorflow(path: Path, asked: Asked) -> Loaded:
    from edgeq.frontends.tensorflow.read import read_tensorflow  # late: an extra

    _refuse_arch(path, asked)
    return read_tensorflow(path, asked.given, asked.trust)


def _refuse_arch(path: Path, asked: Asked) -> None:
    if asked.arch is not None:
        raise UsageError("the file says itself what its network is", where=path.name, remedy="leave --arch away")


FRONTENDS = [
    Frontend("Hugging Face", is_hf_folder, _from_hugging_face, lambda path: read_folder(path).sha256),
    Frontend("ONNX", is_onnx, _from_onnx, sha256_onnx),
    Frontend("TFLite", is_tflite, _from_tflite),
    Frontend("Keras", is_keras, _from_tensorflow),
    Frontend("SavedModel", is_saved_model, _from_tensorflow, sha256_folder),
    Frontend("PyTorch", lambda path: True, _from_pytorch),
]
"""Asked in order. PyTorch's is the last: it says of what nobody knows what it seems to be."""
