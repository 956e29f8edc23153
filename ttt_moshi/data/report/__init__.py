"""A page about a data set: what is in it, what is wrong with it, and some of it to listen to."""

from ttt_moshi.data.report.write import write_report

__all__ = ["write_report"]
