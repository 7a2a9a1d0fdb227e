"""What tests have workers do: found by the name of this module, which imports little."""

from __future__ import annotations

import os
import signal
import time

import torch

from edgeq.errors import MissingExtraError, UnsupportedError


def scaled(factor: torch.Tensor, item: int) -> tuple[float, int, int]:
    return float(factor.sum()) * item, torch.get_num_threads(), os.getpid()


def refuse(item: int) -> int:
    if item == 2:
        raise UnsupportedError("two", remedy="take three", where="here")
    return item


def strange(item: int) -> None:
    raise MissingExtraError("package", "extra")


def local_class(item: int) -> None:
    class Odd(Exception):
        pass

    raise Odd("cannot travel")


def die(item: int) -> None:
    if item == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def wait(item: int) -> None:
    time.sleep(600)
