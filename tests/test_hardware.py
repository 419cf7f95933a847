"""Devices, memory allocation and the processor's name."""

import os
import platform
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from drilldown import hardware
from drilldown.errors import ParameterError
from drilldown.steps import ROOT

FAULTS = """
import resource, torch
from drilldown import hardware
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10 * 2**20)  # 40 MiB: by default glibc keeps at most 32
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
faults()
before = faults()
hardware.keep_freed_memory()
for _ in range(10):  # in the first rounds the heap may still grow
    after = faults()
print(before, after)
"""
GLIBC = tuple(map(int, re.findall(r"\d+", platform.libc_ver()[1]))) if platform.libc_ver()[0] == "glibc" else ()


@pytest.mark.skipif(GLIBC < (2, 36), reason="there is no glibc that keeps more than 32 MiB here")
@pytest.mark.slow
def test_freed_memory_is_kept():
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10


def test_an_older_glibc_gets_its_highest_threshold(monkeypatch):
    calls = []

    def mallopt(option: int, value: int) -> bool:
        calls.append((option, value))
        return not (option == -3 and value > 2**25)  # -3: M_MMAP_THRESHOLD

    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    hardware.keep_freed_memory()
    assert [value for option, value in calls if option == -3][-1] == 2**25


def test_devices():
    assert hardware.select_device("cpu").type == "cpu"
    with pytest.raises(ParameterError, match="device is 'tpu': it takes one of auto, cpu, cuda"):
        hardware.select_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_on_a_machine_without_it():
    assert hardware.select_device("auto").type == "cpu"
    with pytest.raises(ParameterError, match="device is 'cuda': this machine has no CUDA device"):
        hardware.select_device("cuda")


def test_the_processor_has_a_name():
    cores, _, model = hardware.processor_name(torch.device("cpu")).partition(" × ")
    assert int(cores) == hardware.cores()
    assert model.strip()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, str(hardware.SPIN_COUNT)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    hardware.limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # it was not set by the patch


@pytest.mark.fault("half a core", "a cgroup's quota, of both generations", "one thread, one process at a time")
@pytest.mark.parametrize(
    "files",
    [{"cpu.max": "50000 100000"}, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}],
    ids=["cgroup v2", "cgroup v1"],
)
def test_the_quota_of_a_cgroup_bounds_threads_and_processes(tmp_path, monkeypatch, files):
    mounted = {f"/sys/fs/cgroup/{name}": tmp_path / name for name in files}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    exists, opened = os.path.exists, open
    is_quota = lambda file: str(file).startswith("/sys/fs/cgroup/cpu")  # noqa: E731
    monkeypatch.setattr(os.path, "exists", lambda file: file in mounted if is_quota(file) else exists(file))
    monkeypatch.setattr("builtins.open", lambda file, *how, **more: opened(mounted.get(file, file), *how, **more))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        hardware.keep_to_quota()
        assert (torch.get_num_threads(), os.environ.pop("OMP_NUM_THREADS")) == (1, "1")
        assert hardware.max_jobs(torch.device("cpu")) == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's own word
        torch.set_num_threads(2)
        hardware.keep_to_quota()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.fault("little memory", "a cgroup's limit, of both generations", "fewer processes at a time, at least one")
@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_cgroup_bounds_the_processes(tmp_path, monkeypatch, version):
    folder = tmp_path / "memory" if version == 1 else tmp_path
    limit, usage, inactive = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr(hardware, "cores", lambda: 64)
    cpu = torch.device("cpu")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {100 * 2**20} kB\n")  # 100 GiB
    monkeypatch.setattr(hardware, "MEMORY_INFO", tmp_path / "meminfo")
    assert hardware.max_jobs(cpu) == 50
    (folder / usage).write_text(str(3 * 2**30))
    (folder / "memory.stat").write_text(f"anon 1\n{inactive} {2 * 2**30}\n")
    for given, jobs in ((str(9 * 2**30), 4), (str(2**30), 1), ("max", 50)):
        (folder / limit).write_text(given)
        assert hardware.max_jobs(cpu) == jobs
