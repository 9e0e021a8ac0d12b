"""A Hugging Face Hub on the loopback interface."""

from loopback.hub import LoopbackHub

__all__ = ["LoopbackHub"]
