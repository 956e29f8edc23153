"""Audio likelihood when the text is not given: the model writes its own while it is made to say the recording."""

from __future__ import annotations

import math

import blake3
import torch
from moshi.models.lm import LMModel

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.scoring.score import Scores, eager_on_cpu, valid_tokens


def score_with_sampled_text(
    model: LMModel, codes: torch.Tensor, frames: torch.Tensor, samples: int, seed: int
) -> Scores:
    """NLL of Moshi's audio in codes [B, n_q + 1, T] with the text drawn from the model, one frame after another.

    `samples == 1` takes the likeliest token each time (the model's own inner monologue). With more, texts are drawn
    from the model's distribution and the probability of the audio is the mean over texts: an unbiased estimate of the
    marginal p(audio). It is returned token by token: each text's weight is the probability it gave to the audio
    so far, so the sum over any leading part of the recording is -log of that mean. Drawn texts depend on `seed` and the
    row's own tokens, not on its neighbours. Text is masked in the result.
    """
    if model.delays[0] != 0:
        raise EvaluationError("the text stream of this model is delayed, and sampled text needs one that is not")
    B, _, T = codes.shape
    n = 1 + model.dep_q
    rows = codes.repeat_interleave(samples, dim=0)
    steps = _delayed(model, rows)
    generators = [torch.Generator().manual_seed(_row_seed(row, j, seed)) for row in codes for j in range(samples)]
    delayed = torch.zeros(len(rows), n - 1, T, device=codes.device)
    with torch.no_grad(), eager_on_cpu(model), model.streaming(len(rows)):
        for t in range(T):
            hidden, text_logits = model.forward_text(steps[..., t : t + 1])
            logits = text_logits[:, 0, 0].float().cpu()
            if samples > 1:
                uniform = torch.stack([torch.rand(logits.shape[-1], generator=g) for g in generators])
                logits = logits - torch.log(-torch.log(uniform))  # Gumbel noise: argmax is a draw
            steps[:, 0, t + 1] = logits.argmax(dim=-1).to(steps.device)
            audio = model.forward_depformer_training(steps[..., t + 1 : t + 2], hidden)[:, :, 0].float()
            targets = steps[:, 1:n, t + 1].clamp(min=0, max=model.card - 1)
            delayed[..., t] = -audio.log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]
    mask = valid_tokens(model, codes, frames)
    mask[:, 0] = False
    nll = torch.zeros(len(rows), n - 1, T, device=codes.device)
    for k, delay in enumerate(model.delays[1:n]):
        nll[:, k, : T - delay] = delayed[:, k, delay:]
    nll = nll.view(B, samples, n - 1, T).masked_fill(~mask[:, None, 1:], 0.0)
    out = torch.full(mask.shape, float("nan"), device=codes.device)
    out[:, 1:] = _marginal(nll)
    return Scores(out.masked_fill(~mask, float("nan")), mask)


def _marginal(nll: torch.Tensor) -> torch.Tensor:
    """-log of the mean probability over samples, token by token in the order (frame, codebook).

    nll [B, S, K, T] -> [B, K, T].
    """
    B, S, K, T = nll.shape
    total = nll.double().transpose(2, 3).reshape(B, S, T * K).cumsum(dim=-1)
    log_mean = torch.logsumexp(-total, dim=1)  # and log S, which cancels
    before = torch.cat([torch.full_like(log_mean[:, :1], math.log(S)), log_mean[:, :-1]], dim=1)
    return (before - log_mean).view(B, T, K).transpose(1, 2).float()


def _delayed(model: LMModel, codes: torch.Tensor) -> torch.Tensor:
    """The input sequence [B, n_q + 1, T + 1]: initial tokens, then every stream shifted by its delay."""
    B, _, T = codes.shape
    steps = model._get_initial_token().repeat(B, 1, T + 1)
    for k, delay in enumerate(model.delays):
        steps[:, k, 1 + delay :] = codes[:, k, : T - delay]
    return steps


def _row_seed(row: torch.Tensor, sample: int, seed: int) -> int:
    length = int((row != -1).any(dim=0).sum())
    content = row[:, :length].cpu().contiguous().numpy().tobytes()
    return int.from_bytes(blake3.blake3(f"{seed} {sample} ".encode() + content).digest()[:7], "little")
