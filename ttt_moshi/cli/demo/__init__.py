"""`ttt-moshi demo`: from nothing to a page that shows what the package is for."""

from ttt_moshi.cli.demo.command import main

__all__ = ["main"]
