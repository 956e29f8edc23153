"""Mini benchmarks in the layouts of the official ones, made from generated speech."""

from ttt_moshi.data.minibench.bench import SIZES, BenchSize, make_bench

__all__ = ["SIZES", "BenchSize", "make_bench"]
