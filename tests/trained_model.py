"""A trained model with its data: four textures, told apart almost always."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    """Convolution, depthwise, residual, pooling, linear: small, but every kind of kernel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.ReLU())
        self.point = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + self.point(self.depthwise(x))
        return self.head(x.mean((2, 3)))


def make(folder: Path, width: int = 8) -> Path:
    """Writes `model.pt2`, `weights.pt`, `pickled.pt`, `calib.npz` and `eval.npz`; it is trained once for all tests."""
    return Path(shutil.copytree(_made(width), folder, dirs_exist_ok=True))


@cache
def _made(width: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="edgeq-tests-"))
    atexit.register(shutil.rmtree, folder)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)

    def samples(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(0, 4, count)
        rows, columns = np.mgrid[:16, :16]
        waves = np.stack([np.sin(rows), np.sin(columns), np.sin(rows + columns), np.sin(rows) * np.sin(columns)])
        images = waves[labels] + generator.normal(0, 0.3, (count, 16, 16))
        return images[:, None].astype(np.float32), labels

    x, y = samples(512)
    net = Net(width)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    net.eval()
    program = torch.export.export(
        net, (torch.from_numpy(x[:2]),), dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}}
    )
    torch.export.save(program, folder / "model.pt2")
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(net, folder / "pickled.pt")
    np.savez(folder / "calib.npz", image=samples(64)[0])
    images, labels = samples(128)
    np.savez(folder / "eval.npz", image=images, labels=labels)
    return folder
