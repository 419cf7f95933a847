"""What the Numba engine takes: the reason why a network or a layer is left to torch. Imports no Numba."""

import importlib.util
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import platformdirs
import torch
from torch import nn

DTYPES = {torch.float32, torch.float64}
MAX_CHANNELS = 64  # with more channels, torch's matrix products are faster than the kernels


def why_unsupported(networks: Iterable[nn.Module], device_types: set[str]) -> str | None:
    """Return why the engine does not take the networks on these types of device, as a clause; None if it does."""
    if other := device_types - {"cpu"}:
        return f"the network is on {min(other)}"
    layers = [layer for network in networks for layer in network.modules()]
    if not any(type(child) is nn.Conv2d for layer in layers if type(layer) is nn.Sequential for child in layer):
        return "the network has no nn.Conv2d in an nn.Sequential"
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and (feature := unsupported_feature(layer)):
            return (
                f"{layer} has {feature}: the numba engine takes convolutions without padding, stride, dilation "
                f"or bias, of at most {MAX_CHANNELS} channels, in float32 or float64"
            )
    return None


def why_unavailable() -> str | None:
    """Return why Numba cannot compile kernels in this process, as a clause; None if it can."""
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed"
    if os.environ.get("NUMBA_DISABLE_JIT", "").strip() not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    if not any(map(_can_write, _cache_folders())):
        return "Numba has no folder for its compiled kernels: set NUMBA_CACHE_DIR to one that can be written"
    return None


def _cache_folders() -> list[Path]:
    """Where Numba keeps what it compiles: in the first of these folders that it can write to."""
    given = [Path(folder) for folder in [os.environ.get("NUMBA_CACHE_DIR")] if folder]
    return [*given, Path(__file__).parent / "__pycache__", platformdirs.user_cache_path("numba", appauthor=False)]


def _can_write(folder: Path) -> bool:
    """Whether a file can be written to the folder, which is made if need be. Numba finds out in the same way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def unsupported_feature(conv: nn.Conv2d) -> str | None:
    """Return what a convolution has that the kernels do not take; None if they take it."""
    features = {
        "padding": conv.padding != (0, 0),
        "a stride": conv.stride != (1, 1),
        "a dilation": conv.dilation != (1, 1),
        "a bias": conv.bias is not None,
        f"more than {MAX_CHANNELS} channels": max(conv.in_channels, conv.out_channels) > MAX_CHANNELS,
        f"weights in {str(conv.weight.dtype).removeprefix('torch.')}": conv.weight.dtype not in DTYPES,
    }
    return next((feature for feature, is_present in features.items() if is_present), None)
