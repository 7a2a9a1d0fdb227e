"""ExecuTorch, which runs `.pte` files. In Python it needs PyTorch beside it, on devices too."""

from edgeq import on_device
from edgeq.runtimes.info import RuntimeInfo

INFO = RuntimeInfo(
    name="executorch",
    distribution="executorch",
    modules=("executorch",),
    extra="executorch",
    suffixes=(".pte",),
    on_device=on_device.FOLDER / "executorch.py",
    beside=("torch",),
)
