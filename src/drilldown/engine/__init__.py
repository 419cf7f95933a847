"""Faster training of small convolutional networks on a CPU. The door is `accelerate`; the other names are internal."""

from drilldown.engine.acceleration import accelerate

__all__ = ["accelerate"]
