"""The registry: what is shipped is sound, a user's file works, and a mistake is named with its place and a way out."""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.errors import UsageError
from edgeq.registry import load
from edgeq.registry.load import check_all, load_profile, load_target, profile_names, target_names

MINIMAL = """
schema = 1
name = "board"
summary = "a board"
execution = "none"

[[runtimes]]
name = "onnxruntime"
format = "onnx"

[[runtimes.kernels]]
ops = ["conv2d", "linear"]
activations = "uint8"
weights = "int8"
source = "a test"

[[runtimes.kernels]]
ops = ["add"]
activations = "uint8"
source = "a test"
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "board.toml") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return write


def refusal(name_or_path: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_target(name_or_path)
    return caught.value


@pytest.mark.parametrize("name", target_names())
def test_every_shipped_target_loads(name: str) -> None:
    assert load_target(name).name == name


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads_and_belongs_to_a_target(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.target in target_names()


def test_the_promised_targets_and_devices_are_shipped() -> None:
    assert {
        "x86-avx2", "x86-avx512", "arm-neon", "nvidia-gpu", "npu-hexagon", "npu-ethos-u", "npu-intel", "mcu-cortex-m",
    } <= set(target_names())  # fmt: skip
    assert {
        "local-x86", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "h100", "ethos-u55-128", "ethos-u65-256",
        "ethos-u85-512", "snapdragon-8-gen-3-npu", "core-ultra-npu", "arm64-emulated",
    } <= set(profile_names())  # fmt: skip


def test_nothing_shipped_has_a_problem() -> None:
    assert check_all() == []


def test_the_check_finds_a_broken_file_and_broken_references(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "profiles").mkdir()
    head, rest = MINIMAL.split("[[runtimes]]")
    write(f'{head}default_profile = "gone"\n[[runtimes]]\nshared_scale = ["concat"]\n{rest}', "targets/board.toml")
    write("schema = ", "targets/broken.toml")
    write('name = "lost"\ntarget = "nowhere"\nsummary = "-"\nlink = "none"', "profiles/lost.toml")
    monkeypatch.setattr(load, "data_folder", lambda kind: tmp_path / kind)
    problems = "\n".join(check_all())
    assert "broken.toml:1" in problems
    assert "targets/board.toml: default_profile: there is no valid profile 'gone'" in problems
    assert "targets/board.toml: runtimes.0.shared_scale: no kernel lists 'concat'" in problems
    assert "profiles/lost.toml: target: there is no valid target 'nowhere'" in problems


def test_default_profiles_are_devices_of_their_target() -> None:
    for name in target_names():
        default = load_target(name).default_profile
        assert default is None or load_profile(default).target == name


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_one_artefact_serves_arm_and_x86(runtime: str) -> None:
    arm, x86 = ({r.name: r for r in load_target(n).runtimes}[runtime] for n in ("arm-neon", "x86-avx512"))
    assert arm == x86


def test_weights_keep_clear_of_saturation_where_pair_sums_saturate() -> None:
    saturating = [
        (kernel.activation_scheme, kernel.weight_scheme)
        for runtime in load_target("x86-avx2").runtimes
        for kernel in runtime.kernels
        if kernel.accumulator == "int16-saturating"
    ]
    assert saturating
    for activation, weight in saturating:
        assert weight is not None
        assert 2 * activation.quant_max * max(-weight.quant_min, weight.quant_max) < 2**15


def test_tensorrt_kernels_are_symmetric() -> None:
    (runtime,) = load_target("nvidia-gpu").runtimes
    integer = [k for k in runtime.kernels if k.activation_scheme.integer]
    assert all(k.activations == "int8" and k.activation_symmetry == "symmetric" for k in integer)


def test_prescribed_outputs_of_litert() -> None:
    runtime = next(r for r in load_target("arm-neon").runtimes if r.name == "litert")
    first = {f.op: f for f in reversed(runtime.fixed_outputs)}
    assert (first["sigmoid"].scale, first["sigmoid"].zero_point) == (1 / 256, -128)
    assert (first["softmax"].scale, first["softmax"].zero_point) == (1 / 256, -128)
    assert (first["tanh"].scale, first["tanh"].zero_point) == (1 / 128, 0)
    assert all(f.dtype == "int8" for f in first.values())


def test_the_default_kernel_of_every_operator_has_eight_bits() -> None:
    for name in target_names():
        for runtime in load_target(name).runtimes:
            for op in {op for kernel in runtime.kernels if not kernel.weight_only for op in kernel.ops}:
                kernel = runtime.kernel(op)
                assert kernel is not None
                assert kernel.activations in ("int8", "uint8"), (name, runtime.name, op)
                assert kernel.weights in ("int8", None), (name, runtime.name, op)


def test_emulated_devices_claim_no_time() -> None:
    for profile in map(load_profile, profile_names()):
        if profile.link == "qemu":
            assert profile.clock is None and profile.bandwidth is None and not profile.figures
            assert any("latency" in note for note in profile.notes)


def test_a_users_file_is_a_target(write: Write) -> None:
    target = load_target(write(MINIMAL))
    assert target.name == "board"
    assert target.runtimes[0].kernel("linear") is not None
    assert target.runtimes[0].kernel("concat") is None


def test_a_users_file_is_a_profile(write: Write) -> None:
    profile = load_profile(
        write(
            """
            extends = "raspberry-pi-5"
            name = "my-pi"
            clock = { value = 1.8, unit = "GHz", how = "measured", source = "cpufreq on my desk" }
            """
        )
    )
    assert profile.target == "arm-neon"
    assert profile.cores == load_profile("raspberry-pi-5").cores
    assert profile.clock is not None and profile.clock.source == "cpufreq on my desk"


def test_a_figure_never_inherits_the_source_of_another_number(write: Write) -> None:
    path = write('extends = "raspberry-pi-5"\nname = "my-pi"\nclock = { value = 1.8 }')
    with pytest.raises(UsageError, match=r"clock\.unit"):
        load_profile(path)


def test_extends_merges_runtimes_by_name(write: Write) -> None:
    target = load_target(
        write(
            """
            extends = "arm-neon"
            name = "board"
            notes = ["mine"]

            [[runtimes]]
            name = "onnxruntime"
            shared_scale = ["concat"]
            """
        )
    )
    base = load_target("arm-neon")
    assert (target.summary, target.notes) == (base.summary, ["mine"])
    assert [r.name for r in target.runtimes] == [
        "onnxruntime",
        "litert",
        "executorch",
    ]  # what the file names comes first
    assert target.runtimes[0].shared_scale == ["concat"]
    inherited = {r.name: r for r in base.runtimes}
    assert target.runtimes[0].kernels == inherited["onnxruntime"].kernels
    assert target.runtimes[1] == inherited["litert"]


def test_a_list_in_a_runtime_replaces(write: Write) -> None:
    target = load_target(
        write(
            """
            extends = "arm-neon"
            name = "board"
            [[runtimes]]
            name = "litert"
            [[runtimes.kernels]]
            ops = ["add"]
            activations = "int8"
            source = "a test"
            """
        )
    )
    assert [k.ops for k in target.runtimes[0].kernels] == [["add"]]


def test_extends_takes_a_path_relative_to_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(MINIMAL)
    child = write('extends = "board.toml"\nname = "child"\nexecution = "local"', "child.toml")
    monkeypatch.chdir("/")
    target = load_target(child)
    assert (target.name, target.execution, target.summary) == ("child", "local", "a board")


def test_a_name_is_not_inherited(write: Write) -> None:
    error = refusal(write('extends = "arm-neon"'))
    assert "'name' is missing" in error.cause


def test_a_circle_is_refused(write: Write) -> None:
    write('extends = "b.toml"\nname = "a"', "a.toml")
    write('extends = "c.toml"\nname = "b"', "b.toml")
    error = refusal(write('extends = "a.toml"\nname = "c"', "c.toml"))
    assert "circle" in error.cause
    assert "c.toml -> a.toml -> b.toml -> c.toml" in error.cause


@pytest.mark.parametrize(
    ("old", "new", "where", "remedy"),
    [
        ("summary =", "sumary =", "sumary", "summary"),
        ('weights = "int8"', 'wieghts = "int8"', "runtimes.0.kernels.0.wieghts", "weights"),
        ('weights = "int8"', 'weights = "int9"', "runtimes.0.kernels.0.weights", "int8"),
        ('"linear"', '"linaer"', "runtimes.0.kernels.0.ops.1", "linear"),
        ('["add"]', "[]", "runtimes.0.kernels.1.ops", ""),
        ("schema = 1", "schema = 2", "schema", ""),
        ("schema = 1", "shema = 1", "shema", "schema"),
        ('name = "onnxruntime"', 'name = "onnx-runtime"', "runtimes.0.name", "onnxruntime"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_a_suggestion(
    write: Write, old: str, new: str, where: str, remedy: str
) -> None:
    assert old in MINIMAL
    path = write(MINIMAL.replace(old, new))
    error = refusal(path)
    assert error.where == f"{path}: {where}"
    assert remedy in error.remedy
    assert error.exit_code == 2


def test_a_mistake_behind_extends_is_placed_in_the_file_that_has_it(write: Write) -> None:
    write(MINIMAL.replace("summary =", "sumary ="))
    child = write('extends = "board.toml"\nname = "child"', "child.toml")
    assert "board.toml: sumary" in refusal(child).where
    write(MINIMAL)
    child = write('extends = "board.toml"\nname = "child"\nexecuton = "local"', "child.toml")
    error = refusal(child)
    assert "child.toml: executon" in error.where
    assert "execution" in error.remedy


def test_runtimes_without_names_are_reported_not_merged(write: Write) -> None:
    error = refusal(write('extends = "arm-neon"\nname = "board"\n[[runtimes]]\nformat = "onnx"'))
    assert "runtimes.0." in error.where


@pytest.mark.parametrize(("text", "line"), [('name = "a"\nsummary = = 1\n', 2), ("a = 1\nb = 2\nc = [1,\n", 4)])
def test_broken_toml_is_reported_with_its_line(write: Write, text: str, line: int) -> None:
    error = refusal(write(text))
    assert error.where.endswith(f"board.toml:{line}")
    assert "TOML" in error.cause


def test_a_file_that_is_no_text_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(b"name = '\xff\xfe'")
    assert "UTF-8" in refusal(str(path)).cause


@pytest.mark.parametrize(
    ("wrong", "right"), [("arm-noen", "arm-neon"), ("x86-avx51", "x86-avx512"), ("ethos", "npu-ethos-u")]
)
def test_an_unknown_name_suggests_known_ones(wrong: str, right: str) -> None:
    error = refusal(wrong)
    assert wrong in error.cause
    assert right in error.remedy


def test_an_unknown_base_is_placed_in_the_file_that_names_it(write: Write) -> None:
    error = refusal(write('extends = "arm-noen"\nname = "board"'))
    assert "board.toml: extends" in error.where
    assert "arm-neon" in error.remedy


@pytest.mark.parametrize("path", ["./missing.toml", "missing.toml", "some/where"])
def test_a_missing_file_is_not_taken_for_a_name(path: str) -> None:
    assert "no file" in refusal(path).cause


def test_profiles_and_targets_are_not_mixed_up() -> None:
    with pytest.raises(UsageError, match="no profile 'arm-neon'"):
        load_profile("arm-neon")


@given(st.text(max_size=20))
def test_any_name_loads_or_is_refused_with_a_remedy(name: str) -> None:
    try:
        assert load_target(name).name == name
    except UsageError as error:
        assert error.remedy


@given(
    st.recursive(
        st.booleans() | st.integers(-3, 3) | st.sampled_from(["litert", "onnxruntime", "x"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "kernels", "ops"]), inner),
        max_leaves=8,
    )
)
def test_whatever_stands_under_runtimes_is_merged_or_refused(value: object) -> None:
    def toml(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(toml, value)) + "]"
        return json.dumps(value)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "board.toml"
        path.write_text(f'extends = "arm-neon"\nname = "board"\nruntimes = {toml(value)}\n', encoding="utf-8")
        try:
            target = load_target(str(path))
        except UsageError as error:
            assert "board.toml" in error.where and error.remedy
        else:
            assert {r.name for r in target.runtimes} == {"litert", "onnxruntime", "executorch"}
