"""The folder of a language model that decodes: what it must be, looked at before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from edgeq.errors import UnsupportedError, UsageError
from edgeq.hugging_face.folder import HfFolder, read_folder, stop_tokens


def open_folder(path: Path) -> HfFolder:
    """Checks the folder of a language model.

    Raises:
        UsageError: a file is missing or damaged, leads out of the folder, or wants code of its own to run.
        UnsupportedError: its weights are pickles, or it is no language model that decodes.
    """
    folder = read_folder(path)
    if not folder.architecture.endswith("ForCausalLM"):
        raise UnsupportedError(
            f"its architecture is {folder.architecture or 'not told'}",
            where=path.name,
            remedy="give a folder of one architecture, ...ForCausalLM",
        )
    if folder.pickled:
        raise UnsupportedError(
            "its weights are pickles, which run code when they are read",
            where=path.name,
            remedy="save it with save_pretrained, which writes safetensors",
        )
    if not folder.count("vocab_size"):
        raise UsageError(
            "its config.json has no vocab_size", where=path.name, remedy="download the folder again, whole"
        )
    stop_tokens(path)  # transformers and the builder pass over a file that is damaged
    return folder
