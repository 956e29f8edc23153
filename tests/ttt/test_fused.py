"""The fused kernel on Triton's interpreter, in a process of its own (the interpreter is chosen at import)."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from ttt_moshi.ttt import fused

SCRIPT = """
import torch
from ttt_moshi.ttt import fused
torch.set_num_threads(1)
for K, f, biases in {cases}:
    error = fused.trial(torch.device("cpu"), K, f, biases)
    print(K, f, biases, f"{{error:.1e}}")
    assert error <= 1e-5, (K, f, biases, error)
assert fused.reason_against("mlp", torch.device("cpu"), torch.float32, 16, 16) is None
"""


def interpret(cases):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    script = SCRIPT.format(cases=cases)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "cases",
    [
        [(16, 16, True), (16, 128, False), (64, 32, True)],
        pytest.param(
            [(K, f, biases) for K in (16, 32, 64) for f in (16, 32, 64, 128) for biases in (True, False)],
            marks=pytest.mark.slow,
            id="every geometry",
        ),
    ],
)
def test_kernel_equals_the_plain_form(cases):
    interpret(cases)


def test_a_processor_does_not_ask_for_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fused.usable(torch.zeros(2, 16, 16), [torch.zeros(1)] * 4, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("linear", torch.float32, 16, 16), "linear"),
        (("mlp", torch.float64, 16, 16), "float64"),
        (("mlp", torch.float32, 5, 16), "mini_batch_size"),
        (("mlp", torch.float32, 16, 24), "head_dim"),
    ],
)
def test_what_it_cannot_do_is_said(arguments, words):
    kind, *rest = arguments
    assert words in fused.reason_against(kind, torch.device("cuda"), *rest)


def test_a_kernel_that_cannot_run_here_is_left_aside():
    """Without a GPU Triton finds no driver, without a C compiler it cannot build one: whatever it raises."""
    done = subprocess.run(
        [sys.executable, "-c", CANNOT_RUN], env={**os.environ, "CC": "/nonexistent"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at mini_batch_size 16, head_dim 16: " in done.stdout and "\n" not in done.stdout.strip()


CANNOT_RUN = """
import torch
from ttt_moshi.ttt import fused
print(fused.reason_against("mlp", torch.device("cpu"), torch.float32, 16, 16))
"""


OFFLINE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ttt_moshi.ttt.fused_kernel import forward_kernel
names = forward_kernel.arg_names
for K in (16, 64):
    constants = dict(BIAS=0, K=K, F=128, H=512, TILE=32, EPS=1e-6)
    kind = lambda n: "*fp32" if n.endswith("_ptr") else "constexpr" if n in constants else "i32" if n == "N" else "i64"
    values = {(names.index(n),): v for n, v in constants.items()}
    source = ASTSource(forward_kernel, {n: kind(n) for n in names}, values)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8, num_stages=1))
    print(K, made.metadata.shared, len(made.asm["cubin"]))
    assert made.metadata.shared <= 232448, "more shared memory than a block of an H100 or H200 has"
"""


@pytest.mark.slow
def test_kernel_compiles_for_hopper_without_a_gpu():
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
