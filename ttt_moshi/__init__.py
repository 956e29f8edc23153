"""Test-time training inside Moshi."""

__version__ = "0.1.0"
