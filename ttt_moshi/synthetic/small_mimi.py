"""A small Mimi of the official class whose codes carry speech, made in seconds without training.

A randomly initialised Mimi loses most of the signal, and its codebooks are zeros, so every code is 0. Here the official
modules get weights with a meaning instead:

- the encoder's strided convolutions are a filter bank: Gabor filters on a mel scale, rectified by the ELU, averaged,
  and compressed by a second ELU (`exp(-a e) - 1` falls steeply for small energies e and flattens for large ones, like
  a logarithm turned over), then reduced to their principal components;
- the semantic quantizer looks along the directions that separate phones whatever the voice (linear discriminants fitted
  on espeak-ng's phone times), as Mimi's first codebook is distilled from a speech recogniser;
- the acoustic quantizer looks along the principal components;
- codebooks are k-means centroids, each level fitted on the residual of the levels before;
- the decoder is a channel vocoder, see `vocoder`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from moshi.models.compression import MimiModel
from moshi.models.loaders import get_mimi
from safetensors.torch import save_file

from ttt_moshi.frames import FRAME_RATE, SAMPLE_RATE
from ttt_moshi.synthetic.espeak import Utterance
from ttt_moshi.synthetic.kmeans import residual_codebooks
from ttt_moshi.synthetic.vocoder import LINEAR_BIAS, set_decoder

CODEBOOKS = 8
LOUDNESS_SECONDS = 16
GAIN = 1000.0  # of the Gabor filters
SCALES = (30.0, 300.0)  # of the two compressing curves, per unit of mean rectified amplitude


@dataclass(frozen=True)
class MimiSize:
    """Geometry of a small Mimi."""

    filters: int = 8
    """channels of the first convolution; the filter bank has twice as many bands"""
    bins: int = 128
    """entries of every codebook"""
    components: int = 32
    """principal components kept per encoder frame, and dimension of the codebooks"""


def mimi_config(size: MimiSize) -> dict[str, Any]:
    """The dictionary that `moshi.models.loaders.get_mimi` builds a model from."""
    dimension = 4 * size.components
    return {
        "sample_rate": SAMPLE_RATE,
        "channels": 1,
        "frame_rate": FRAME_RATE,
        "seanet": {
            "channels": 1,
            "dimension": dimension,
            "causal": True,
            "n_filters": size.filters,
            "n_residual_layers": 0,
            "activation": "ELU",
            "compress": 2,
            "dilation_base": 2,
            "disable_norm_outer_blocks": 0,
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 3,
            "norm": "none",
            "pad_mode": "constant",
            "ratios": [4, 4, 60],
            "true_skip": True,
        },
        "quantizer": {
            "dimension": size.components,
            "n_q": CODEBOOKS,
            "bins": size.bins,
            "input_dimension": dimension,
            "output_dimension": dimension,
        },
        "transformer": {
            "d_model": dimension,
            "num_heads": 4,
            "num_layers": 1,
            "causal": True,
            "layer_scale": 0.01,
            "context": 250,
            "conv_layout": True,
            "max_period": 10000,
            "gating": "none",
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": 2 * dimension,
            "input_dimension": dimension,
            "output_dimensions": [dimension],
        },
    }


def fit_mimi(utterances: Sequence[Utterance], size: MimiSize, seed: int = 0) -> MimiModel:
    """Builds a small Mimi and fits its projections and codebooks on utterances (a minute or more of several voices)."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        mimi = get_mimi(None, mimi_config(size), num_codebooks=CODEBOOKS)
        audio, phones = _join(utterances, mimi.frame_size)
        directions, mean = _set_encoder(mimi, audio, size)
        _set_downsample(mimi, size)
        latent = mimi._encode_to_unquantized_latent(audio)[0].T  # [T, dimension]
        generator = torch.Generator().manual_seed(seed)
        quantizer: Any = mimi.quantizer
        _fit_quantizer(quantizer.rvq_first, discriminants(latent, phones, size.components), latent, generator)
        _fit_quantizer(quantizer.rvq_rest, principal_components(latent, size.components)[0], latent, generator)
        some = audio[..., : LOUDNESS_SECONDS * SAMPLE_RATE]
        set_decoder(mimi, directions, mean, mel_bands(2 * size.filters), latent, some)
    return mimi


def save_mimi(mimi: MimiModel, size: MimiSize, weights: Path, config: Path) -> None:
    """Writes the files that `get_mimi(weights, json.load(config))` reads back."""
    save_file({name: tensor.contiguous() for name, tensor in mimi.state_dict().items()}, weights)
    config.write_text(json.dumps(mimi_config(size), indent=2) + "\n")


def mel_bands(count: int, low: float = 120.0, high: float = 7000.0) -> list[float]:
    """Centre frequencies in Hz, equally spaced on the mel scale 2595 log10(1 + f/700).

    The highest stays below 8 kHz, so that recordings at 16 kHz have the same codes as the same speech at 24 kHz.
    """

    def mel(frequency: float) -> float:
        return 2595.0 * math.log10(1.0 + frequency / 700.0)

    steps = [mel(low) + (mel(high) - mel(low)) * k / (count - 1) for k in range(count)]
    return [700.0 * (10.0 ** (step / 2595.0) - 1.0) for step in steps]


def discriminants(features: torch.Tensor, labels: Sequence[str], count: int, ridge: float = 1e-2) -> torch.Tensor:
    """Linear discriminants: directions [count, D] of features [T, D], within-class covariance made unit.

    Unused directions (fewer classes than `count`) are zero. `ridge` is relative to the mean within-class variance.
    """
    names = sorted(set(labels))
    index = torch.tensor([names.index(label) for label in labels])
    sums = torch.zeros(len(names), features.shape[1], dtype=torch.float64).index_add_(0, index, features.double())
    counts = torch.bincount(index, minlength=len(names)).double()[:, None]
    means = sums / counts
    within = features.double() - means[index]
    scatter = within.T @ within / len(features)
    scatter += ridge * scatter.diagonal().mean() * torch.eye(len(scatter), dtype=torch.float64)
    whitening = torch.linalg.inv(torch.linalg.cholesky(scatter))  # [D, D]
    between = (means - features.double().mean(0)) * (counts / len(features)).sqrt()
    _, _, directions = torch.linalg.svd(between @ whitening.T, full_matrices=False)
    kept = min(count, len(names) - 1, directions.shape[0])
    projection = torch.zeros(count, features.shape[1], dtype=torch.float64)
    projection[:kept] = _fix_signs(directions[:kept]) @ whitening
    return projection.float()


def principal_components(features: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal directions [count, D] of largest variance of features [T, D], and the mean [D]."""
    mean = features.double().mean(0)
    centred = features.double() - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return _fix_signs(vectors.T.flip(0)[:count]).float(), mean.float()


def _fix_signs(directions: torch.Tensor) -> torch.Tensor:
    """An eigenvector's sign is arbitrary: make its largest entry positive."""
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * largest.sign()


def _join(utterances: Sequence[Utterance], frame_size: int) -> tuple[torch.Tensor, list[str]]:
    """Audio [1, 1, N] with a few frames of silence between utterances, and the phone in the middle of every frame."""
    pieces, phones = [], []
    for utterance in utterances:
        frames = math.ceil(len(utterance.samples) / frame_size) + 3
        piece = torch.zeros(frames * frame_size)
        piece[: len(utterance.samples)] = torch.from_numpy(utterance.samples)
        pieces.append(piece)
        for frame in range(frames):
            middle = (frame + 0.5) * frame_size / SAMPLE_RATE
            spoken = [p.text for p in utterance.phones if p.start <= middle < p.end]
            phones.append("_" if not spoken or spoken[0].startswith("_") else spoken[0].strip("',"))
    return torch.cat(pieces)[None, None], phones


def _convolutions(mimi: MimiModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight [out, in, taps] and bias [out] of every convolution of the encoder, all set to zero."""
    parameters = []
    for module in mimi.encoder.modules():
        if isinstance(module, torch.nn.Conv1d):
            assert module.bias is not None
            parameters.append((module.weight.zero_(), module.bias.zero_()))
    return parameters


def _set_encoder(mimi: Any, audio: torch.Tensor, size: MimiSize) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes the encoder a filter bank followed by a projection that is fitted on audio [1, 1, N].

    Returns the principal components [components, 4 bands] of its spectrum, and the mean [4 bands].
    """
    lift, gabor, envelope, spectrum, projection = _convolutions(mimi)
    _set_lift(*lift)
    _set_gabor_filters(*gabor)
    _set_envelopes(*envelope)
    _set_spectrum(*spectrum)
    features = mimi.encoder.model[:-1](audio)[0].T
    directions, mean = principal_components(features, size.components)
    weight, bias = projection
    weight[: size.components, :, -1] = directions
    bias[: size.components] = -directions @ mean
    return directions, mean


def _set_lift(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Copies of the waveform, lifted into the linear half of the ELU."""
    weight[:, 0, -1] = 1.0
    bias.fill_(LINEAR_BIAS)


def _set_gabor_filters(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """One band per output channel. The gain makes the ELU behind it saturate at once below zero: it rectifies."""
    bands, copies, taps = weight.shape
    time = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    window = torch.hann_window(taps, periodic=False, dtype=torch.float64)
    for band, frequency in enumerate(mel_bands(bands)):
        kernel = window * torch.cos(2 * math.pi * frequency * time / SAMPLE_RATE)
        kernel -= window * kernel.sum() / window.sum()  # no response to the constant lift
        emphasis = math.sqrt(1 + frequency / 700.0)  # speech has less energy in high bands
        weight[band] = (kernel / kernel.norm() * emphasis * GAIN / copies).float()


def _set_envelopes(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Mean of each band over the window, then two compressing curves."""
    bands = weight.shape[1]
    for k, scale in enumerate(SCALES):
        rows = slice(k * bands, (k + 1) * bands)
        weight[rows] = torch.eye(bands)[:, :, None] * -scale / GAIN / weight.shape[2]
        bias[rows] = -scale / GAIN  # the ELU before saturates at -1, which is its zero


def _set_spectrum(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Sum of the curves over each quarter of the window, with the sign turned so that louder is larger."""
    bands, quarter = weight.shape[0] // 4, weight.shape[2] // 4
    bias.fill_(LINEAR_BIAS)
    for part in range(4):
        rows, taps = slice(part * bands, (part + 1) * bands), slice(part * quarter, (part + 1) * quarter)
        for k in range(len(SCALES)):
            weight[rows, k * bands : (k + 1) * bands, taps] = -torch.eye(bands)[:, :, None] / quarter


def _set_downsample(mimi: Any, size: MimiSize) -> None:
    """Stacks the four encoder frames under the kernel, so nothing is lost between 25 and 12.5 frames a second."""
    weight = mimi.downsample.conv.conv.conv.weight.zero_()  # [dimension, dimension, 4]
    for tap in range(weight.shape[2]):
        rows = slice(tap * size.components, (tap + 1) * size.components)
        weight[rows, : size.components, tap] = torch.eye(size.components)


def _fit_quantizer(quantizer: Any, directions: torch.Tensor, latent: torch.Tensor, generator: torch.Generator) -> None:
    """Sets the input projection of one residual quantizer and its codebooks, level by level."""
    quantizer.input_proj.weight.copy_(directions[:, :, None])
    layers = [layer._codebook for layer in quantizer.vq.layers]
    levels = residual_codebooks(latent @ directions.T, len(layers), layers[0].codebook_size, generator)
    for codebook, (centroids, usage) in zip(layers, levels, strict=True):
        codebook.embedding_sum.copy_(centroids * usage[:, None])
        codebook.cluster_usage.copy_(usage)
        codebook._initialized.fill_(1.0)
