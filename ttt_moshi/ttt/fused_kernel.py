"""The forward scan of the MLP as one Triton kernel: a program per stream and head walks through all mini-batches.

The same arithmetic as `mlp_step.forward`, which stands for it wherever this one cannot run. W1 and W2 are walked
through in tiles of hidden units, twice a mini-batch: once to predict the keys, once to read the queries and to write
the update. Products are taken in three tf32 parts, which is float32 accuracy. Importing this module needs Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ttt_moshi.ttt import functional

GELU_C = tl.constexpr(functional.GELU_C)
GELU_A = tl.constexpr(functional.GELU_A)


@triton.jit
def _gelu_sigmoid(z):
    """s with gelu(z) = z * s."""
    return tl.sigmoid(GELU_C * (z + GELU_A * z * z * z))


@triton.jit
def _gelu_slope(z, s):
    return s + z * s * (1.0 - s) * GELU_C * (1.0 + 3.0 * GELU_A * z * z)


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, target_ptr, lam_ptr, gamma_ptr, beta_ptr, tau_ptr,
    W1_ptr, b1_ptr, W2_ptr, b2_ptr,
    out_ptr, z1_ptr, z2_ptr,
    N, z1_stride, z2_stride,
    BIAS: tl.constexpr, K: tl.constexpr, F: tl.constexpr, H: tl.constexpr, TILE: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """q, k, target, out [G, N*K, F]; lam [G, N*K]; gamma, beta [G, 1, F]; tau [K]; W1 [G, F, H], b1 [G, 1, H], W2
    [G, H, F], b2 [G, 1, F] (updated in place); z1 [N, G, 2K, H] and z2 [N, G, K, F] with strides of their first axis
    (0: every mini-batch writes to the same place). All float32 and contiguous otherwise."""
    g = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, K)
    cols = tl.arange(0, F)
    tile = tl.arange(0, TILE)
    wide = rows[:, None] * F + cols[None, :]  # offsets in a [K, F] block
    z1_ptr += g * 2 * K * H
    z2_ptr += g * K * F
    W1_ptr += g * F * H
    b1_ptr += g * H
    W2_ptr += g * H * F
    gamma = tl.load(gamma_ptr + g * F + cols)[None, :]
    beta = tl.load(beta_ptr + g * F + cols)[None, :]
    tau = tl.load(tau_ptr + rows)
    tau_last = tl.load(tau_ptr + K - 1)
    b2 = tl.load(b2_ptr + g * F + cols)
    for n in range(N):
        base = (g * N + n) * K
        q = tl.load(q_ptr + base * F + wide)
        k = tl.load(k_ptr + base * F + wide)
        target = tl.load(target_ptr + base * F + wide)
        lam = tl.load(lam_ptr + base + rows)
        e = lam * tau_last
        E = tl.where(rows[None, :] <= rows[:, None], lam[None, :], 0.0) * tau[:, None]

        # What the weights predict for the keys, and the gradient of its loss.
        z2 = tl.zeros((K, F), tl.float32) + b2[None, :]
        for start in range(0, H, TILE):
            hidden = start + tile
            W1 = tl.load(W1_ptr + cols[:, None] * H + hidden[None, :])
            W2 = tl.load(W2_ptr + hidden[:, None] * F + cols[None, :])
            b1 = tl.load(b1_ptr + hidden)[None, :]
            z1 = _dot(k, W1) + b1
            tl.store(z1_ptr + rows[:, None] * H + hidden[None, :], z1)
            tl.store(z1_ptr + (K + rows[:, None]) * H + hidden[None, :], _dot(q, W1) + b1)
            z2 += _dot(z1 * _gelu_sigmoid(z1), W2)
        tl.store(z2_ptr + wide, z2)
        mean = tl.sum(z2, 1)[:, None] / F
        centred = z2 - mean
        inverse_std = 1.0 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / F + EPS)
        normed = centred * inverse_std
        d = gamma * (gamma * normed + beta - target)
        g2 = inverse_std * (d - tl.sum(d, 1)[:, None] / F - normed * (tl.sum(d * normed, 1)[:, None] / F))
        tl.debug_barrier()  # z1 was written by other threads than those that read it now

        # What the queries read, while the update is written tile by tile behind them.
        S1 = E * (_dot(q, tl.trans(k)) + BIAS)
        reach2 = tl.zeros((K, K), tl.float32)
        z2_bar = tl.zeros((K, F), tl.float32) + b2[None, :]
        for start in range(0, H, TILE):
            hidden = start + tile
            keys_at = z1_ptr + rows[:, None] * H + hidden[None, :]
            queries_at = keys_at + K * H
            W1_at = W1_ptr + cols[:, None] * H + hidden[None, :]
            W2_at = W2_ptr + hidden[:, None] * F + cols[None, :]
            W2 = tl.load(W2_at)
            z1 = tl.load(keys_at)
            s = _gelu_sigmoid(z1)
            a1 = z1 * s
            g1 = _dot(g2, tl.trans(W2)) * _gelu_slope(z1, s)
            z1_bar = tl.load(queries_at) - _dot(S1, g1)
            tl.store(queries_at, z1_bar)
            a1_bar = z1_bar * _gelu_sigmoid(z1_bar)
            z2_bar += _dot(a1_bar, W2)
            reach2 += _dot(a1_bar, tl.trans(a1))
            tl.store(W1_at, tl.load(W1_at) - _dot(tl.trans(k * e[:, None]), g1))
            tl.store(W2_at, W2 - _dot(tl.trans(a1 * e[:, None]), g2))
            if BIAS:
                b1_at = b1_ptr + hidden
                tl.store(b1_at, tl.load(b1_at) - tl.sum(g1 * e[:, None], 0))
        z2_bar -= _dot(E * (reach2 + BIAS), g2)
        if BIAS:
            b2 -= tl.sum(g2 * e[:, None], 0)
        mean = tl.sum(z2_bar, 1)[:, None] / F
        centred = z2_bar - mean
        inverse_std = 1.0 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / F + EPS)
        tl.store(out_ptr + base * F + wide, q + gamma * centred * inverse_std + beta)
        z1_ptr += z1_stride
        z2_ptr += z2_stride
        tl.debug_barrier()  # the next mini-batch reads the weights written here
    if BIAS:
        tl.store(b2_ptr + g * F + cols, b2)
