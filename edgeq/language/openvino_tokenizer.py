"""The tokenizer of a folder as OpenVINO models, which its pipelines for text read beside the decoder."""

from __future__ import annotations

from pathlib import Path

from edgeq.errors import MissingExtraError, UnsupportedError
from edgeq.hugging_face.tokenizer import load_tokenizer
from edgeq.runtimes.openvino import import_openvino

TOKENIZER, DETOKENIZER = "openvino_tokenizer.xml", "openvino_detokenizer.xml"


def write_tokenizers(source: Path, folder: Path) -> list[Path]:
    """Writes `openvino_tokenizer.xml` and `openvino_detokenizer.xml` into a folder, each with a `.bin` beside it.

    Args:
        source: a Hugging Face folder.

    Returns:
        The paths of the two.

    Raises:
        MissingExtraError: openvino-tokenizers, or transformers, is not installed.
        UsageError: the folder has no tokenizer, or one that cannot be read.
        UnsupportedError: its kind has no form in OpenVINO.
    """
    openvino = import_openvino()  # before the other package imports it
    try:
        from openvino_tokenizers import convert_tokenizer
    except ImportError as error:
        raise MissingExtraError("openvino-tokenizers", "openvino-genai") from error
    tokenizer = load_tokenizer(source)
    try:
        models = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:  # of many kinds, from many parsers
        raise UnsupportedError(
            f"OpenVINO has no form for its tokenizer ({' '.join(str(error).split())[:200]})",
            where=str(source),
            remedy="leave the tokenizer out, and give tokens to the pipeline",
        ) from error
    if not isinstance(models, tuple):
        raise UnsupportedError(
            "OpenVINO has no form for what makes text of its tokens",
            where=str(source),
            remedy="leave the tokenizer out, and give tokens to the pipeline",
        )
    paths = [folder / name for name in (TOKENIZER, DETOKENIZER)]
    for model, path in zip(models, paths, strict=True):
        openvino.save_model(model, path)
    return paths
