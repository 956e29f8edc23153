"""Mini benchmarks in the layouts of the official ones, made from generated speech."""

from ttt_moshi.synthetic.benchmarks.bench import SIZES, BenchSize, make_bench

__all__ = ["SIZES", "BenchSize", "make_bench"]
