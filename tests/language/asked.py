"""Tasks of lm-evaluation-harness as files: questions whose answers are words of the small Llamas."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

NOUNS = ["cat", "mat", "dog", "house", "bird", "rain", "sea"]

CHOICES: dict[str, Any] = {
    "task": "small_choices",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "gold",
    "doc_to_choice": "{{choices}}",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}


def write_questions(folder: Path, count: int = 20) -> Path:
    """`questions.jsonl`, three answers of different lengths each; the first question is empty."""
    chance = random.Random(0)
    questions = []
    for number in range(count):
        words = chance.sample(NOUNS, 3)
        text = f"{number} : the {chance.choice(NOUNS)} sat on the {chance.choice(NOUNS)} and the"
        choices = [words[0], f"{words[1]} ran to the {chance.choice(NOUNS)}", f"{words[2]} sang"]
        questions.append({"question": text if number else "", "choices": choices, "gold": chance.randrange(3)})
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return folder


def write_task(folder: Path, name: str = "choices.yaml", text: str = "", **changed: Any) -> Path:
    """The task of the questions as YAML, of which JSON is a part.

    Args:
        text: what is written instead.
        changed: keys with other values.
    """
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text or json.dumps(CHOICES | changed))
    return write_questions(folder)
