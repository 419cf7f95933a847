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
