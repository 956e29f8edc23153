"""Which models of the family can be trained, evaluated and talked to, decided before any weight is read.

`docs/models.md` has them in a table.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from moshi.models import loaders
from moshi.models.lm import LMModel
from moshi.modules.transformer import StreamingTransformer, StreamingTransformerLayer

from ttt_moshi.frames import FRAME_RATE
from ttt_moshi.moshi.errors import MoshiError

Purpose = Literal["train", "evaluate", "talk"]

# Keys of a repository's config.json that describe its files and uses, not the language model.
REPOSITORY_KEYS = (
    "moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "model_type", "lm_gen_config",
    "tts_config", "stt_config", "model_id",
)  # fmt: skip
# Keys that older configurations have and that mean nothing today, or say how the weights are stored.
OBSOLETE_KEYS = ("depformer_causal", "lora", "lora_rank", "lora_scaling", "demux_second_stream")
_GEOMETRY = ("dim", "num_heads", "num_layers", "n_q", "dep_q", "card", "text_card", "delays")
HIBIKI_CONDITIONS = {"description": "very_good"}
"""how well Hibiki should speak; its generators ask for the best"""
HIBIKI_OPPOSITE = {"description": "very_bad"}
"""what classifier-free guidance leads away from"""
_IMAGE_KEYS = ("image", "vision", "xa_")


def check_supported(config: Mapping[str, Any] | None, purpose: Purpose, source: str = "config.json") -> None:
    """Refuses a model that cannot be used for `purpose`.

    Args:
        config: content of the repository's `config.json`; None is the original Moshi 7B.
        source: what to call the configuration in the message.

    Raises:
        MoshiError: one line that says what the model is or which key is in the way.
    """
    if config is None:
        return
    for reason in _reasons(without_user_steps(config) or {}, purpose):
        raise MoshiError(f"{source}: {reason}")


def _reasons(config: Mapping[str, Any], purpose: Purpose) -> Iterator[str]:
    """What is in the way, the most telling first."""
    model_type = str(config.get("model_type", "moshi")).lower()
    if "tts" in model_type or config.get("tts_config"):
        yield (
            "this is a text-to-speech model (TTS): it speaks a script that it is given and hears nobody; take a Moshi"
        )
    if "vis" in model_type or any(key.startswith(_IMAGE_KEYS) for key in config):
        yield "this is MoshiVis, which looks at images: its image layers are not part of the moshi package"
    missing = [key for key in _GEOMETRY if key not in config]
    if missing:
        yield (
            f"it does not describe a Moshi: `{missing[0]}` is missing; take the config.json of the model's repository"
        )
    unknown = sorted(key for key in config if key not in known_keys())
    if unknown:
        yield f"`{unknown[0]}` is unknown to the moshi package that is installed: is the model for a newer one?"
    dep_q, n_q = config.get("dep_q", 0), config.get("n_q", 0)
    if not (isinstance(dep_q, int) and isinstance(n_q, int) and dep_q >= 0 and n_q > 0):
        yield f"`dep_q` and `n_q` count codebooks, got {dep_q!r} and {n_q!r}"
    if config.get("quantize"):
        yield "the base model is quantised, which cannot be trained: take the bfloat16 model"
    if dep_q >= n_q:
        yield (
            f"the model predicts {dep_q} of its {n_q} audio codebooks itself, so that it would not hear the user: take "
            "a model whose `dep_q` is smaller than `n_q`"
        )
    conditions = set(config.get("conditioners") or ())
    if conditions and not (model_type == "hibiki" and conditions == set(HIBIKI_CONDITIONS)):
        names = ", ".join(sorted(conditions))
        yield f"this model wants conditions ({names}), which nothing here supplies: take a model without conditioners"


def without_user_steps(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The configuration that is used here: where a model predicts the user's audio too, without that half.

    PersonaPlex has as many depth steps as audio codebooks, 16: the first 8 say Moshi's frame, the others guess the
    user's, who is there to be heard. Its config.json says no more than what it is; the geometry is Moshi's.
    """
    if config is None:
        return None
    changed = dict(config)
    model_type = str(config.get("model_type", "moshi")).lower()
    if model_type == "personaplex" and "dep_q" not in config:
        own = {key: value for key, value in config.items() if key in REPOSITORY_KEYS}
        return {**copy.deepcopy(loaders._lm_kwargs), **own}
    dep_q = config.get("dep_q")
    speaks = model_type in ("moshi", "personaplex") and not config.get("tts_config")
    if speaks and isinstance(dep_q, int) and dep_q == config.get("n_q") and dep_q > 0 and dep_q % 2 == 0:
        changed["dep_q"] = dep_q // 2
        if changed.get("depformer_weights_per_step_schedule"):
            changed["depformer_weights_per_step_schedule"] = changed["depformer_weights_per_step_schedule"][
                : dep_q // 2
            ]
    return changed


def writing_delay(config: Mapping[str, Any] | None) -> int:
    """Frames after which a speech-to-text model writes a word that it hears; 0 for every other model."""
    seconds = ((config or {}).get("stt_config") or {}).get("audio_delay_seconds", 0.0)
    return round(seconds * FRAME_RATE)


def first_silence(config: Mapping[str, Any] | None) -> int:
    """Frames of silence that a speech-to-text model should hear first; 0 for every other model."""
    seconds = ((config or {}).get("stt_config") or {}).get("audio_silence_prefix_seconds", 0.0)
    return round(seconds * FRAME_RATE)


def known_keys() -> set[str]:
    """Every key of a configuration that has a meaning here or in the moshi package that is installed."""
    lm = {name for name in _arguments(LMModel) if name not in ("condition_provider", "fuser")}
    layers = _arguments(StreamingTransformer) | _arguments(StreamingTransformerLayer)
    inner = layers | {f"depformer_{name}" for name in layers}
    return lm | inner | {"conditioners", "fuser", *REPOSITORY_KEYS, *OBSOLETE_KEYS}


def _arguments(kind: type) -> set[str]:
    parameters = inspect.signature(kind).parameters.values()
    return {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
