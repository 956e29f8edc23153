"""The small Mimi's decoder as a channel vocoder, so that its codes can be listened to.

The decoder undoes the encoder's filter bank step by step: principal components back to the compressed spectrum, the
compression undone piecewise linearly by ELUs, one pulse for every 10 ms that excites each band as loud as it was.
Speech comes out monotonous and buzzing.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ttt_moshi.synthetic.espeak import SAMPLE_RATE

LINEAR_BIAS = 4.0  # keeps an ELU in its linear half; speech and features stay within it
KNEES = (0.3, 1.25)  # of the compressed amplitude, where a steeper piece begins
SLOPES = (0.012, 0.06)
SHARPNESS = 20.0


def set_decoder(
    mimi: Any,
    directions: torch.Tensor,
    mean: torch.Tensor,
    bands: list[float],
    latent: torch.Tensor,
    audio: torch.Tensor,
) -> None:
    """Sets all weights from the quantizer's output to the waveform.

    Args:
        directions: [components, 4 bands], the principal components of the encoder's spectrum.
        mean: [4 bands] its mean.
        bands: centre frequencies in Hz.
        latent: [T, dimension], what the encoder gave for the speech that the quantizers were fitted on.
        audio: [1, 1, N], some seconds of speech whose loudness the decoder shall reproduce.
    """
    first, expand, pulses, excite, last = _convolutions(mimi)
    _set_quantizer_outputs(mimi, latent)
    _set_upsample(mimi, len(directions))
    _set_spectrum(*first, directions, mean)
    _set_amplitudes(*expand, len(bands))
    _set_pulses(*pulses, len(bands))
    _set_bands(*excite, bands)
    _set_output(*last, gain=1.0)
    heard = mimi.decode(mimi.encode(audio))
    _set_output(*last, gain=(audio.square().mean() / heard.square().mean()).sqrt().item())


def _convolutions(mimi: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of every convolution of the decoder, all set to zero."""
    parameters = []
    for module in mimi.decoder.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            assert module.bias is not None
            parameters.append((module.weight.zero_(), module.bias.zero_()))
    return parameters


def _set_quantizer_outputs(mimi: Any, latent: torch.Tensor) -> None:
    """Least squares from the two quantizers' vectors together to the latent [T, dimension]."""
    codes = mimi.quantizer.encode(latent.T[None])  # [1, 8, T]
    halves = (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)
    parts = (codes[:, :1].transpose(0, 1), codes[:, 1:].transpose(0, 1))
    vectors = [half.vq.decode(part) for half, part in zip(halves, parts, strict=True)]
    known = torch.cat(vectors, 1)[0].T.double()  # [T, 2 components]
    gram = known.T @ known
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    solution = torch.linalg.solve(gram, known.T @ latent.double()).float()  # [2 components, dimension]
    for half, weights in zip(halves, solution.chunk(2), strict=True):
        half.output_proj.weight.copy_(weights.T[:, :, None])


def _set_upsample(mimi: Any, components: int) -> None:
    """Of the four encoder frames stacked in a latent, the last two are new: they become two frames again."""
    weight = mimi.upsample.convtr.convtr.convtr.weight.zero_()  # [dimension, 1, 4]
    weight[2 * components : 3 * components, 0, 0] = 1.0
    weight[3 * components :, 0, 1] = 1.0


def _set_spectrum(weight: torch.Tensor, bias: torch.Tensor, directions: torch.Tensor, mean: torch.Tensor) -> None:
    components = len(directions)
    for block in (2, 3):
        weight[:, block * components : (block + 1) * components, -1] = directions.T
    bias.copy_(mean)


def _set_amplitudes(weight: torch.Tensor, bias: torch.Tensor, bands: int) -> None:
    """25 to 100 steps a second; two ELUs per band begin to rise at the two knees."""
    for k, knee in enumerate(KNEES):
        rows = slice(k * bands, (k + 1) * bands)
        bias[rows] = -SHARPNESS * (LINEAR_BIAS + knee)
        for part in (2, 3):  # newest quarters of the encoder's window, 20 ms each
            taps = slice(2 * (part - 2), 2 * (part - 2) + 2)
            weight[part * bands : (part + 1) * bands, rows, taps] = SHARPNESS * torch.eye(bands)[:, :, None]
    # The steeper piece of the highest band is given up for a constant, which the next step needs.
    weight[:, -1] = 0.0
    bias[-1] = 1.0


def _set_pulses(weight: torch.Tensor, bias: torch.Tensor, bands: int) -> None:
    """100 to 400 steps a second: the amplitude on every fourth step, nothing between."""
    for k, slope in enumerate(SLOPES):
        for band in range(bands):
            channel = k * bands + band
            if channel < len(weight) - 1:
                weight[channel, band, 0] = slope / SHARPNESS
                weight[-1, band, 0] += slope / SHARPNESS  # an ELU at rest is -1


def _set_bands(weight: torch.Tensor, bias: torch.Tensor, bands: list[float]) -> None:
    """400 to 24000 samples a second: each band rings at its frequency. Lifted into the linear half of the ELU."""
    taps = weight.shape[2]
    time = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    window = torch.hann_window(taps, periodic=False, dtype=torch.float64)
    for band, frequency in enumerate(bands):
        kernel = window * torch.cos(2 * math.pi * frequency * time / SAMPLE_RATE)
        weight[band, 0] = (kernel / kernel.norm() / math.sqrt(1 + frequency / 700.0)).float()
    bias[0] = LINEAR_BIAS


def _set_output(weight: torch.Tensor, bias: torch.Tensor, gain: float) -> None:
    weight[0, 0, -1] = gain
    bias.fill_(-gain * LINEAR_BIAS)
