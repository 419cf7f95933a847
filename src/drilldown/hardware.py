"""What this machine computes with: cores, memory allocation, device, processor."""

import contextlib
import ctypes
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from drilldown.choices import DEVICES
from drilldown.errors import ParameterError

if TYPE_CHECKING:
    import torch

CUDA_MEMORY = 8 * 2**30  # bytes for a process that trains several seeds at the same time: more than it needs
SPIN_COUNT = 3000  # turns of the waiting loop; libgomp makes 300,000 by default


def cores() -> int:
    """Return the number of CPU cores that this process may use: by its affinity, and by the quota of its cgroup."""
    import joblib

    return int(joblib.cpu_count())


def max_jobs(device: "torch.device") -> int:
    """Return how many processes can train at a time: one for each core and, on CUDA, as far as its memory suffices."""
    if device.type != "cuda":
        return cores()
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(cores(), free // CUDA_MEMORY))


def keep_freed_memory() -> None:
    """Make glibc keep the memory that is freed; by default, each large tensor gets new pages from the system.

    Saves about a tenth of the training time on a CPU; without glibc it does nothing. For the options and their limits
    see `man mallopt`. Older versions of glibc refuse a threshold above their limit; then the limit itself is set,
    as otherwise the threshold would stay at 128 KiB once the other option is set.
    """
    trim_threshold, mmap_threshold, most, limit = -1, -3, 2**30, 2**25
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(mmap_threshold, most):
            mallopt(mmap_threshold, limit)
        mallopt(trim_threshold, most)


def limit_spinning() -> None:
    """Let idle OpenMP threads sleep soon instead of spinning; call it before PyTorch is imported.

    On a machine with other work, threads that spin take the cores from the threads that they wait for. A user's own
    setting (GOMP_SPINCOUNT or OMP_WAIT_POLICY) stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def select_device(name: str) -> "torch.device":
    """Return the device of that name; "auto" takes CUDA where there is one.

    Raises ParameterError for another name, or when this machine does not have the device.
    """
    if name not in DEVICES:
        raise ParameterError(f"device is {name!r}: it takes one of {', '.join(DEVICES)}")
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ParameterError("device is 'cuda': this machine has no CUDA device; it takes cpu or auto")
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    return torch.device(name)


def processor_name(device: "torch.device") -> str:
    """Return the processor's name, as "2 × Intel Xeon" (cores first) or "NVIDIA H100"."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{cores()} × {model}"
