"""Runs a file in the interpreter for microcontrollers, for the program of tflite_micro_stand_in.h.

It tells the sizes of its ends, or its answer to the bytes in the file `given`. Too small an arena is an error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tflite_micro.python.tflite_micro import runtime

path, what, arena = sys.argv[1:]
model = runtime.Interpreter.from_file(path, arena_size=int(arena))


def told(kind: str, content: bytes) -> None:
    print(kind, len(content), *content)


def details(kind: str) -> list[dict]:
    found = []
    while True:
        try:
            found.append(getattr(model, f"get_{kind}_details")(len(found)))
        except IndexError:
            return found


given = Path("given").read_bytes()
for place, one in enumerate(details("input")):
    empty = np.zeros(one["shape"], one["dtype"])
    if what == "sizes":
        told("i", empty.tobytes())
        continue
    content, given = given[: empty.nbytes], given[empty.nbytes :]
    model.set_input(np.frombuffer(content, one["dtype"]).reshape(one["shape"]), place)
if what == "answer":
    model.invoke()
    for place in range(len(details("output"))):
        told("o", model.get_output(place).tobytes())
