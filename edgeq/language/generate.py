"""What a build answers to a prompt: its own artefact, in its own runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeq.devices import Candidate, Device, open_device
from edgeq.devices import decoding as on_device
from edgeq.errors import UsageError
from edgeq.hugging_face.folder import CONFIG, HfFolder, read_settings, stop_tokens
from edgeq.hugging_face.tokenizer import load_tokenizer
from edgeq.language.formats import FORMATS
from edgeq.reading import read_json
from edgeq.records.schema import Build, Report
from edgeq.records.strict import validated


@dataclass(frozen=True)
class Answer:
    """What a build wrote.

    Attributes:
        text: behind the prompt.
        tokens: likewise.
        stopped: whether it ended by itself.
        format, device: what answered, and where.
    """

    text: str
    tokens: tuple[int, ...]
    stopped: bool
    format: str
    device: str


def generate(
    folder: str | Path,
    prompt: str,
    *,
    most: int = 128,
    chat: bool = False,
    device: str | None = None,
    threads: int = 0,
    heard: Callable[[str], None] | None = None,
) -> Answer:
    """Lets a build of a language model go on from a prompt, with the likeliest token every time.

    Args:
        folder: of the build.
        most: new tokens at most; fewer where the model's context ends before.
        chat: the prompt is what a user says, put into the model's own template.
        device: where to run it, if not where it was proven.
        threads: 0 for every core.
        heard: is given the words as they come.

    Raises:
        UsageError: this is no build of a language model, or the prompt is empty or too long.
        DeviceError: the device or runtime failed.
    """
    folder = Path(folder)
    build = built_decoder(folder)
    tokenizer = load_tokenizer(folder)
    if chat:
        if tokenizer.chat_template is None:
            raise UsageError("the model has no template for chats", where="--chat", remedy="leave --chat away")
        prompt = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        )
    tokens = [int(token) for token in tokenizer(prompt, add_special_tokens=not chat)["input_ids"]]
    if not tokens:
        raise UsageError("the prompt is empty", remedy="say something")
    context = HfFolder(folder, read_settings(folder, CONFIG), (), False).count("max_position_embeddings")
    if context and len(tokens) >= context:
        raise UsageError(
            f"the prompt has {len(tokens)} tokens, and the model takes {context} with the answer",
            remedy="give a shorter prompt",
        )
    most = min(most, context - len(tokens)) if context else most
    so_far: list[int] = []
    told = ""

    def hear(_: int, token: int) -> None:
        nonlocal told
        so_far.append(token)
        text = str(tokenizer.decode(so_far, skip_special_tokens=True))
        # a character may take several tokens
        if heard is not None and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            heard(text[len(told) :])
            told = text

    place = opened(build, device)
    path = folder / FORMATS[build.format].loads
    (written,) = on_device.generate(
        place,
        Candidate(path, build.runtime),
        [tokens],
        most=most,
        stop=stops(folder, tokenizer.eos_token_id),
        threads=threads,
        heard=hear,
    )
    text = str(tokenizer.decode(list(written.tokens), skip_special_tokens=True))
    if heard is not None:
        heard(text[len(told) :])
    return Answer(text, written.tokens, written.stopped, build.format, place.name)


def built_decoder(folder: Path) -> Build:
    """What the report of a build says of the artefact that was kept.

    Raises:
        UsageError: there is no report, or it is not of a language model.
    """
    remedy = "give the --out folder of `edgeq deploy` of a language model"
    if not (folder / "report.json").is_file():
        raise UsageError("there is no build here", where=str(folder), remedy=remedy)
    report = validated(Report, read_json(folder / "report.json", "a report", remedy), folder / "report.json")
    build = next((one for one in report.builds if one.format == report.chosen), None)
    if build is None or build.format not in FORMATS or FORMATS[build.format].loads not in build.files:
        raise UsageError("this is no build of a language model", where=str(folder), remedy=remedy)
    return build


def opened(build: Build, device: str | None) -> Device:
    """Where a build runs: where it was proven, if no other place is named.

    Raises:
        UsageError: it was not run, and none is named.
    """
    if device is None and build.device == "none":
        raise UsageError("the build was not run anywhere", where=build.format, remedy="name a place with --device")
    return open_device(device or build.device)


def stops(folder: Path, otherwise: int | None) -> list[int]:
    """The tokens that end an answer: what `generation_config.json` says, or the tokenizer.

    Raises:
        UsageError: the file is damaged.
    """
    return stop_tokens(folder) or ([] if otherwise is None else [otherwise])
