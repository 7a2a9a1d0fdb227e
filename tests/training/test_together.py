"""Several processes on one network, over gloo: the same steps as one process, and gradients that travel as integers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import few_bits
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from edgeq.frontends.load import load
from edgeq.training.gradients import GROUP, Gradients, pack, unpack
from edgeq.training.together import Team, team

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def launched(processes: int, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    made, plan = few_bits.folder(), out.with_suffix(".json")
    plan.write_text(few_bits.plan("w4a4").model_dump_json())
    start = [*TORCHRUN, str(processes), "-m", "edgeq.cli"] if processes > 1 else [sys.executable, "-m", "edgeq.cli"]
    asked = ["train", str(made / "model.pt2"), "--plan", str(plan), "--target", str(made / "few-bits.toml"), "--labels"]
    asked += ["--train", str(made / "train.npz"), "--epochs", "2", "--batch", "50", "--augment", "few_bits:noisy"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [*start, "--json", *asked, "--out", str(out), *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def weights(path: Path) -> np.ndarray:
    grids = load(path).grids
    assert grids is not None
    return np.concatenate([(g.integers * np.ones(1)).reshape(-1) for g in grids.weights.values()])


def test_three_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Steps of 50 samples are no whole number for each of three, and the last step of an epoch is smaller."""
    one, three = (launched(n, tmp_path / f"{n}.pt") for n in (1, 3))
    assert one.returncode == 0 == three.returncode, one.stderr + three.stderr
    a, b = (json.loads(done.stdout) for done in (one, three))
    assert [e["held_out"] for e in a["epochs"]] == pytest.approx([e["held_out"] for e in b["epochs"]], rel=0.02)
    assert a["epochs"][0]["held_out"] > 1.2 * a["epochs"][-1]["held_out"]
    # sums in another order end at another integer here and there
    same = weights(tmp_path / "1.pt") == weights(tmp_path / "3.pt")
    assert same.mean() > 0.97
    assert sorted(p.name for p in tmp_path.iterdir() if "3" in p.name) == ["3.json", "3.pt", "3.pt.html"]


@pytest.mark.parametrize(("kind", "saved"), [("int8", 0.745), ("int4", 0.87)])
def test_gradients_that_travel_as_integers(kind: str, saved: float, tmp_path: Path) -> None:
    done = launched(2, tmp_path / "t.pt", "--gradients", kind)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["epochs"][0]["held_out"] > 1.2 * told["epochs"][-1]["held_out"]
    assert 1 - told["sent"] / told["float32"] > saved


def test_one_process_sends_gradients_to_none(tmp_path: Path) -> None:
    done = launched(1, tmp_path / "t.pt", "--gradients", "int8")
    assert done.returncode == 2 and "torchrun" in done.stderr
    assert not (tmp_path / "t.pt").exists()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [1, 3, GROUP, GROUP + 1, 3 * GROUP + 7])
def test_packed_gradients_are_within_half_a_step(bits: int, count: int) -> None:
    values = torch.from_numpy(np.random.default_rng(count).normal(size=(3, count)).astype(np.float32)) * 1e-5
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape[1] == -(-count * bits // 8) + 2 * -(-count // GROUP)
    high = 2 ** (bits - 1) - 1
    step = values.abs().amax(1, keepdim=True) / high
    # scales have 8 bits themselves, so that the largest value may be a little out of reach
    assert ((unpack(packed, count, bits) - values).abs() <= (0.5 + high / 256) * step).all()
    assert not unpack(pack(torch.zeros(1, count), bits), count, bits).any()
    assert unpack(pack(torch.full((1, count), float("nan")), bits), count, bits).isnan().all()


def _steps(rank: int, size: int, bits: int, port: int, out: str) -> None:
    """The same gradients again and again: what was sent adds up to them."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with team() as us:
        mine = [
            torch.from_numpy(np.random.default_rng([rank, i]).normal(size=700 + i).astype(np.float32)) for i in range(3)
        ]
        mine[2] *= 1e-3
        state, total = Gradients(bits, us), torch.zeros(sum(map(len, mine)))
        first = None
        for step in range(200):
            # DistributedDataParallel puts them together otherwise after the first step
            order = [2, 0, 1] if step == 0 else [0, 1, 2]
            found = state.mean([mine[i] for i in order], torch.cat([mine[i] for i in order]))
            pieces = dict(zip(order, torch.split(found, [len(mine[i]) for i in order]), strict=True))
            total += torch.cat([pieces[i] for i in range(3)])
            first = total.clone() if first is None else first
        torch.save({"total": total / 200, "first": first, "mine": torch.cat(mine)}, f"{out}/{rank}.pt")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_rounding_takes_away_comes_with_later_steps(size: int, bits: int, tmp_path: Path) -> None:
    mp.spawn(_steps, (size, bits, _free_port(), str(tmp_path)), nprocs=size)
    found: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    real = torch.stack([one["mine"] for one in found]).mean(0)
    assert all(torch.equal(one["total"], found[0]["total"]) for one in found)  # all have the same
    once, often = ((found[0][name] - real).abs().max() for name in ("first", "total"))
    assert often < once / 20


def test_every_sample_of_a_step_is_somebodys() -> None:
    for size, count in ((1, 5), (3, 10), (4, 2)):
        parts = [Team(rank, size).part(count) for rank in range(size)]
        taken = sorted(int(place) for places, weight in parts for place in places if weight)
        assert taken == list(range(count))
        assert sum(weight for _, weight in parts) == pytest.approx(size)


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
