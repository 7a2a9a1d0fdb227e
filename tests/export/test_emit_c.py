"""Emitted C: what is in it, that compilers take it, and that its program tells right answers from wrong ones.

The program is compiled against a stand-in for the library's headers, whose answers are those of the library's own
interpreter. So its calls, sizes and comparisons are tested, and not that the library's sources build around it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trained_model
from device_models import integers, tflite_answer, write_tflite

from edgeq.api.deploy import deploy
from edgeq.devices import Candidate, open_device
from edgeq.errors import UnsupportedError, UsageError
from edgeq.evaluation.measure import fed_as_told
from edgeq.export.emit_c import METHODS, SOURCES, emit, methods
from edgeq.export.emitters import Proven
from edgeq.lock import changed_files, read_golden, read_lock
from edgeq.runtimes import runtime

if not runtime("tflite-micro").available():
    pytest.skip("tflite-micro is not installed", allow_module_level=True)
pytest.importorskip("litert_torch", reason="the tflite extra (litert-torch) is not installed")
from edgeq.export.tflite_graph import Graph, schema

HERE = Path(__file__).parent
INCLUDED = (
    *(f"micro/{name}.h" for name in ("micro_interpreter", "micro_log", "micro_mutable_op_resolver", "system_setup")),
    "schema/schema_generated.h",
)
STRICT = ("-Wall", "-Wextra", "-Werror")


def compiler(name: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    return name


def ran(*command: str | Path, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **how)  # type: ignore


def compiled(*command: str | Path, **how: object) -> None:
    done = ran(*command, **how)
    assert done.returncode == 0, done.stderr


def program(folder: Path, to: Path) -> Path:
    """The emitted program for this machine."""
    cc, cxx = compiler("gcc"), compiler("g++")
    to.mkdir(parents=True)
    for name in INCLUDED:
        header = to / "tensorflow/lite" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text('#include "tflite_micro_stand_in.h"\n')
    for name in ("model_data", "golden_data"):
        compiled(cc, "-std=c11", *STRICT, "-c", folder / f"{name}.c", "-o", to / f"{name}.o")
    objects = [to / f"{name}.o" for name in ("model_data", "golden_data")]
    includes = ("-I", folder, "-I", to, "-I", HERE)
    compiled(cxx, "-std=c++17", *STRICT, *includes, folder / "main.cc", *objects, "-o", to / "program")
    return to / "program"


def says(program: Path, model: Path) -> subprocess.CompletedProcess[str]:
    interpreter = f"{sys.executable} {HERE / 'tflite_micro_interpreter.py'} {model}"
    return ran(program, cwd=program.parent, env={"INTERPRETER": interpreter})


def held(folder: Path, to: Path) -> tuple[bytes, dict[str, str]]:
    """The bytes of the array, and what a compiler makes of the header's numbers."""
    to.mkdir()
    names = re.findall(
        r"#define (\w+_(?:SCALE|ZERO_POINT|ELEMENTS|RANK|BYTES))\b", (folder / "model_data.h").read_text()
    )
    (to / "show.c").write_text(
        '#include <stdio.h>\n#include "golden_data.h"\nint main(void) {\n'
        "  fwrite(model_data, 1, sizeof(model_data), stdout);\n"
        + "".join(f'  fprintf(stderr, "{n} %.9g\\n", (double)({n}));\n' for n in names)
        + "  return (unsigned long)model_data % 16 != 0;\n}\n"
    )
    compiled(compiler("gcc"), "-I", folder, to / "show.c", folder / "model_data.c", "-o", to / "show")
    shown = subprocess.run([to / "show"], capture_output=True, check=True)
    return shown.stdout, dict(line.split() for line in shown.stderr.decode().splitlines())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emitted")
    files = trained_model.make(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEQ_CACHE", str(folder / "cache"))
        report = deploy(
            files / "model.pt2",
            target="mcu-cortex-m",
            calibration=files / "calib.npz",
            evaluation=files / "eval.npz",
            effort="fast",
            emit="c",
            out=folder / "out",
        )
    assert report.verdict == "passed" and set(report.builds[0].sources) == set(SOURCES)
    return folder / "out"


def test_the_array_is_the_file_and_the_numbers_are_its_own(built: Path, tmp_path: Path) -> None:
    content, numbers = held(built, tmp_path / "held")
    assert content == (built / "model.tflite").read_bytes()
    ends = open_device("micro").interface(Candidate(built / "model.tflite", "tflite-micro"))
    for kind, (port,) in (("INPUT", ends.inputs), ("OUTPUT", ends.outputs)):
        told = [float(numbers[f"MODEL_{kind}_0_{what}"]) for what in ("SCALE", "ZERO_POINT", "ELEMENTS", "RANK")]
        assert port.scale is not None
        expected = [np.float32(port.scale), port.zero_point, np.prod(port.shape), len(port.shape)]
        np.testing.assert_array_equal(np.float32(told), np.float32(expected))
    arena = json.loads((built / "report.json").read_text())["builds"][0]["arena_bytes"]
    assert arena <= int(numbers["MODEL_ARENA_BYTES"]) < 2 * arena


def test_the_sources_are_part_of_the_build(built: Path) -> None:
    lock = read_lock(built)
    assert set(SOURCES) <= lock.files.keys() and not changed_files(built, lock)


def test_the_program_passes_on_the_golden_answer_alone(built: Path, tmp_path: Path) -> None:
    golden = read_golden(built, read_lock(built))
    assert golden is not None
    told = (built / "golden_data.c").read_text()
    ports = open_device("micro").interface(Candidate(built / "model.tflite", "tflite-micro")).inputs
    (fed,) = fed_as_told(golden.inputs, ports).values()
    for name, values in (("input", fed[0]), ("output", golden.outputs["tflite"][0][0])):
        text = re.search(rf"golden_{name}_0\[\w+\] = {{(.*?)}}", told, re.S)
        assert text is not None
        assert [int(v) for v in text[1].split(",") if v.strip()] == values.ravel().tolist()

    done = says(program(built, tmp_path / "right"), built / "model.tflite")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "PASS", done.stdout + done.stderr

    other = shutil.copytree(built, tmp_path / "other")
    first = int(golden.outputs["tflite"][0][0].ravel()[0])
    head, tail = told.split("golden_output_0[MODEL_OUTPUT_0_ELEMENTS] = {")
    wrong = tail.replace(str(first), str(first - 1 if first > 0 else first + 1), 1)
    (other / "golden_data.c").write_text(f"{head}golden_output_0[MODEL_OUTPUT_0_ELEMENTS] = {{{wrong}")
    done = says(program(other, tmp_path / "wrong"), built / "model.tflite")
    assert done.returncode == 1 and "FAIL: the answer" in done.stdout and "off by at most 1000" in done.stdout

    small = shutil.copytree(built, tmp_path / "small")
    header = (small / "model_data.h").read_text()
    (small / "model_data.h").write_text(re.sub(r"(MODEL_ARENA_BYTES) \d+", r"\1 1024", header))
    done = says(program(small, tmp_path / "narrow"), built / "model.tflite")
    assert done.returncode == 1 and "MODEL_ARENA_BYTES may be too small" in done.stdout


@pytest.mark.parametrize("cpu", ["cortex-m4", "cortex-m55"])
def test_a_compiler_for_microcontrollers_takes_the_data(built: Path, tmp_path: Path, cpu: str) -> None:
    cc = compiler("arm-none-eabi-gcc")
    for name in ("model_data", "golden_data"):
        compiled(cc, f"-mcpu={cpu}", "-mthumb", *STRICT, "-c", built / f"{name}.c", "-o", tmp_path / f"{name}.o")


def test_several_ends_keep_their_places(tmp_path: Path) -> None:
    path = write_tflite(tmp_path / "two.tflite", signature=False)
    a, b = integers(1), integers(1, seed=1)
    outputs = {"out_a": tflite_answer(a), "out_b": tflite_answer(b)}
    emit(Proven(path, {"in_a": a, "in_b": b}, outputs, arena=8192))
    done = says(program(tmp_path, tmp_path / "program"), path)
    assert done.returncode == 0 and done.stdout.count("off by at most 0") == 2, done.stdout + done.stderr
    with pytest.raises(UnsupportedError, match="golden values of its size"):
        emit(Proven(path, {"in_a": a, "in_b": b[:, :2]}, outputs, arena=8192))


def test_methods_are_of_operators_that_there_are(built: Path) -> None:
    known = {name.replace("_", "") for name in vars(schema.BuiltinOperator)}
    assert {name.upper() for name in METHODS} <= known and len(set(METHODS)) == len(METHODS)
    graph = Graph((built / "model.tflite").read_bytes())
    graph.model.operatorCodes[0].builtinCode = schema.BuiltinOperator.GELU
    with pytest.raises(UnsupportedError, match="no kernel for GELU"):
        methods(graph)


def test_what_cannot_be_emitted_is_told_before_any_work(built: Path, tmp_path: Path) -> None:
    given = {"calibration": "nothing.npz", "out": tmp_path / "out", "effort": "fast"}
    with pytest.raises(UsageError, match="c is emitted for tflite-micro and vela, not for"):
        deploy("nothing.pt2", target="x86-avx2", evaluation="nothing.npz", emit="c", **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no evaluation data was given"):
        deploy("nothing.pt2", target="mcu-cortex-m", emit="c", **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing is emitted as 'rust'"):
        deploy("nothing.pt2", target="mcu-cortex-m", evaluation="nothing.npz", emit="rust", **given)  # type: ignore[arg-type]
