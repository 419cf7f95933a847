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

CPU_MEMORY = 2 * 2**30  # bytes for a process that trains on the CPU: more than it needs
CUDA_MEMORY = 8 * 2**30  # bytes for a process that trains several seeds at the same time: more than it needs
MEMORY_INFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
SPIN_COUNT = 3000  # turns of the waiting loop; libgomp makes 300,000 by default


def cores() -> int:
    """Return the number of CPU cores that this process may use: by its affinity, and by the quota of its cgroup."""
    import joblib

    return int(joblib.cpu_count())


def keep_to_quota() -> None:
    """Let torch, and the processes that this one starts, use no more threads than `cores`.

    OpenMP counts the cores of the affinity: with half a core as quota, two threads would hold each other up. A user's
    own OMP_NUM_THREADS stays.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and cores() < torch.get_num_threads():
        os.environ["OMP_NUM_THREADS"] = str(cores())
        torch.set_num_threads(cores())


def free_memory() -> int | None:
    """Return how many bytes processes can still take: on this machine, and by the limit of its cgroup; None if unknown.

    A cgroup counts the files in memory too; those that were not used lately make room when it is needed.
    """
    free = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        free.append(1024 * _numbers(MEMORY_INFO)["MemAvailable:"])
    for folder, limit, usage, inactive in (
        (CGROUP, "memory.max", "memory.current", "inactive_file"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no limit
            used = int((folder / usage).read_text()) - _numbers(folder / "memory.stat")[inactive]
            free.append(int((folder / limit).read_text()) - used)
    return max(0, min(free)) if free else None


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a file of the kernel: names and numbers."""
    return {name: int(number) for name, number, *_ in map(str.split, file.read_text().splitlines())}


def max_jobs(device: "torch.device") -> int:
    """Return how many processes can train at a time: one for each core, as far as the memory suffices."""
    most, memory = cores(), free_memory()
    if memory is not None:
        most = min(most, memory // CPU_MEMORY)
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        most = min(most, free // CUDA_MEMORY)
    return max(1, most)


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
