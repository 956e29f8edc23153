"""What a TTT layer is made of: its sizes, its inner network and the recipe (preset) it follows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LN_EPS = 1e-6
"""Added under the root of every variance in the layer: one value for forward, backward, targets and outputs."""

EXPANSION = 4
"""Hidden width of the inner MLP, in multiples of the head width."""

HIDDEN_GAIN = 0.5
"""Deviation of the MLP's W1 in units of 1/sqrt(fan_in), where matrices start by fan-in. At 1, GELU gives all hidden
vectors a common part through which memories disturb each other: half of the loss is left after one pass over 64 pairs,
instead of two fifths (`benchmarks/ttt/capability.py`)."""

MLP_WRITE = 7.5
"""Inverse step size, in units of 1/head_dim, at which the MLP so initialised steps about as far as its residual."""


DEFAULT_MINI_BATCH = 16

LONGEST = 2.0
"""Half-lives that are learned or depend on the frame (`forget`) stay below so many times the longest that they start
with. A memory that lives longer than what training carried drifts where nothing taught it not to."""


@dataclass(frozen=True)
class Preset:
    """A recipe of normalisation, step size and initialisation."""

    qk_norm: Literal["rms", "l2", "none"]
    """length of queries and keys: sqrt(head_dim), 1, or as projected"""
    normalised_target: bool
    """whether the inner target is `gamma * standardise(v - k) + beta` instead of `v - k`"""
    reciprocal_positions: bool
    """whether row i of a mini-batch is read with its updates scaled by 1/i instead of equally"""
    rope: bool
    """whether queries and keys are rotated by their position modulo the mini-batch size"""
    update_biases: bool
    """whether the inner biases are fast weights too, or trained only by the outer loop"""
    fan_in_init: bool
    """whether matrices start with deviation 1/sqrt(fan_in) (W1 of the MLP: HIDDEN_GAIN of it) instead of 0.02"""
    write_strength: bool
    """whether `base_lr` is the share of its residual that one frame writes, independent of all sizes"""


PRESETS: dict[str, Preset] = {
    "speech": Preset(
        qk_norm="rms",
        normalised_target=True,
        reciprocal_positions=False,
        rope=False,
        update_biases=False,
        fan_in_init=True,
        write_strength=True,
    ),
    # arXiv 2407.04620 (test-time-training/ttt-lm-pytorch); its base_lr is 1.0 for linear and 0.1 for mlp.
    "paper_lm": Preset(
        qk_norm="none",
        normalised_target=False,
        reciprocal_positions=True,
        rope=True,
        update_biases=True,
        fan_in_init=False,
        write_strength=False,
    ),
    # arXiv 2504.05298 (test-time-training/ttt-video-dit) made causal; its base_lr is 0.1 for mlp.
    "video_causal": Preset(
        qk_norm="l2",
        normalised_target=True,
        reciprocal_positions=False,
        rope=False,
        update_biases=True,
        fan_in_init=False,
        write_strength=False,
    ),
}


@dataclass(frozen=True)
class TTTConfig:
    """Sizes and recipe of one TTT layer.

    Raises:
        ValueError: a size, name or rate that cannot work; the message names it.
    """

    dim: int
    """width of the residual stream"""
    num_heads: int
    """number of inner networks; `dim` is divided among them"""
    mini_batch_size: int = DEFAULT_MINI_BATCH
    """frames whose inner gradients are all taken at the same fast weights; does not apply to delta, which writes every
    frame exactly"""
    inner: Literal["mlp", "linear", "delta"] = "mlp"
    """the network whose weights are the memory: two layers, one, or one that is written by the gated delta rule"""
    preset: str = "speech"
    """name of the recipe, one of PRESETS"""
    base_lr: float = 1.0
    """inner learning rate; in the speech preset the share of its residual that one frame writes"""
    initial_gating_alpha: float = 0.1
    """start value of both gates; 0 makes the layer the identity"""
    bidirectional_prefix: bool = True
    """whether given frames (`prefix_lengths`) are also read in reversed time"""
    half_life_frames: float | Sequence[float] | None = None
    """frames after which half of what was written is forgotten: the memory fades to its initial weights; None: never.
    A pair (shortest, longest) is spread log-uniformly over the heads. At least `mini_batch_size` / 3; delta: 1"""
    forget: Literal["fixed", "learned", "gated"] = "fixed"
    """of delta: whether half-lives stay as given, are learned for every head, or depend on the frame; bounded by twice
    the longest that is given"""
    target: Literal["own", "next", "both"] = "own"
    """of delta: which frame's value the key of a frame learns to predict, its own frame's, the next one's, or each in
    half of the heads (own in the even ones)"""
    scan_policy: Literal["rebuild", "checkpoint"] = "rebuild"
    """what training keeps for its backward pass: low-rank factors of every frame, or the weights every so many frames
    (a third of the memory on long samples, about a fifth more time)"""

    def __post_init__(self) -> None:
        for name in ("dim", "num_heads", "mini_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"TTTConfig.{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.num_heads:
            raise ValueError(f"TTTConfig.dim {self.dim} is not divisible by num_heads {self.num_heads}")
        if self.inner not in ("mlp", "linear", "delta"):
            raise ValueError(f"TTTConfig.inner must be 'mlp', 'linear' or 'delta', got {self.inner!r}")
        if self.scan_policy not in ("rebuild", "checkpoint"):
            raise ValueError(f"TTTConfig.scan_policy must be 'rebuild' or 'checkpoint', got {self.scan_policy!r}")
        if self.preset not in PRESETS:
            raise ValueError(f"TTTConfig.preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if not (math.isfinite(self.base_lr) and self.base_lr >= 0):
            raise ValueError(f"TTTConfig.base_lr must be finite and not negative, got {self.base_lr}")
        self._check_half_lives()
        self._check_delta()
        if not math.isfinite(self.initial_gating_alpha):
            raise ValueError(f"TTTConfig.initial_gating_alpha must be finite, got {self.initial_gating_alpha}")
        if self.recipe.rope and self.head_dim % 2:
            raise ValueError(f"TTTConfig.preset {self.preset!r} rotates pairs: head_dim {self.head_dim} must be even")

    def _check_half_lives(self) -> None:
        """The memory fades between mini-batches; of much less than an eighth the backward pass could not find the
        whole."""
        if self.half_life_frames is None:
            return
        given = self.half_life_frames
        if isinstance(given, Sequence):
            object.__setattr__(self, "half_life_frames", tuple(given))  # as JSON it was a list
        ends = given if isinstance(given, Sequence) else (given, given)
        least, what = self.mini_batch_size / 3, f"a third of mini_batch_size ({self.mini_batch_size})"
        if self.inner == "delta":
            least, what = 1.0, "1 frame"
        if len(ends) != 2 or not least <= ends[0] <= ends[1] < math.inf:
            raise ValueError(
                f"TTTConfig.half_life_frames must be a number or [shortest, longest], at least {what}, or None, "
                f"got {given}"
            )

    def _check_delta(self) -> None:
        if self.forget not in ("fixed", "learned", "gated"):
            raise ValueError(f"TTTConfig.forget must be 'fixed', 'learned' or 'gated', got {self.forget!r}")
        if self.target not in ("own", "next", "both"):
            raise ValueError(f"TTTConfig.target must be 'own', 'next' or 'both', got {self.target!r}")
        if self.inner != "delta":
            for name, value, plain in (("forget", self.forget, "fixed"), ("target", self.target, "own")):
                if value != plain:
                    raise ValueError(f"TTTConfig.{name} {value!r} is for inner 'delta', this is {self.inner!r}")
            return
        if self.preset != "speech":
            raise ValueError(
                f"TTTConfig.inner 'delta' is one recipe, 'speech': preset {self.preset!r} has no form of it"
            )
        if self.base_lr > 1.0:
            raise ValueError(
                f"TTTConfig.base_lr of 'delta' is the largest share that a frame writes, got {self.base_lr}"
            )
        if self.forget != "fixed" and self.half_life_frames is None:
            raise ValueError(f"TTTConfig.forget {self.forget!r} needs half_life_frames to start from")
        if self.mini_batch_size != DEFAULT_MINI_BATCH:
            warnings.warn(
                f"mini_batch_size {self.mini_batch_size} does not apply to inner 'delta', which writes every frame "
                "exactly",
                stacklevel=4,
            )

    @property
    def head_dim(self) -> int:
        """Width f of one head."""
        return self.dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Width h of the inner MLP's hidden layer."""
        return EXPANSION * self.head_dim

    @property
    def num_rows(self) -> int:
        """Frames that a stream's state has room for: of the running mini-batch; of delta the last one, if the next
        writes with its key."""
        return int(self.target != "own") if self.inner == "delta" else self.mini_batch_size

    @property
    def recipe(self) -> Preset:
        """The preset itself."""
        return PRESETS[self.preset]

    @property
    def half_lives(self) -> tuple[float, float] | None:
        """In frames, of the first and of the last head; those between are spread log-uniformly. None: never."""
        given = self.half_life_frames
        if given is None:
            return None
        return (given[0], given[1]) if isinstance(given, Sequence) else (given, given)

    @property
    def rate_scale(self) -> float:
        """Factor of sigmoid(w_lr . x + b_lr) in the inner step size of a frame.

        With fan-in initialisation and keys of length sqrt(f), a frame's write to the prediction of its own key, as a
        share of its residual, is step * |dz/dW|^2 / var(z): step * f for the linear network; for the MLP both layers
        add up to about MLP_WRITE * step * f. The sigmoid starts at one half, hence the 2. The delta rule's step is that
        share itself and must stay below 1.
        """
        if self.inner == "delta":
            return self.base_lr
        if self.recipe.write_strength:
            return 2.0 * self.base_lr / (self.head_dim * (MLP_WRITE if self.inner == "mlp" else 1.0))
        per_position = 1.0 if self.recipe.reciprocal_positions else 1.0 / self.mini_batch_size
        return self.base_lr * per_position / self.head_dim
