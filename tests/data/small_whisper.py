"""A Whisper model of the smallest size, for English, that CTranslate2 and faster-whisper load, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

DIM, HEADS, MELS = 16, 2, 80
AUDIO_STEPS, TEXT_STEPS = 1500, 448
TOKENS = 4000


def make_small_whisper(folder: Path) -> None:
    """Writes the files of a model that recognises nonsense, the same one every time."""
    from ctranslate2.specs import WhisperSpec
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>"]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    special += ["<|notimestamps|>"]
    times = [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Words of this model begin with a space, which is Ġ among bytes.
    syllables = [f"Ġ{a}{b}" for a in "bdfghklmnprstvwz" for b in "aeiou"]
    fillers = TOKENS - len(letters) - len(syllables) - len(special) - len(times)
    tokens = [*letters, *syllables, *(f"Ġx{n}" for n in range(fillers)), *special, *times]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, *times])

    spec = WhisperSpec(1, HEADS, 1, HEADS)
    _fill(spec, np.random.default_rng(0))
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [tokens.index("<|endoftext|>")]
    spec.config.lang_ids = [tokens.index("<|en|>")]
    spec.config.alignment_heads = [[0, 0], [0, 1]]
    spec.validate()
    folder.mkdir(parents=True)
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))


def _fill(spec: Any, rng: np.random.Generator) -> None:
    def random(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    def linear(layer: Any, out: int, into: int) -> None:
        layer.weight, layer.bias = random(out, into), random(out)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = np.ones(DIM, np.float32), np.zeros(DIM, np.float32)

    encoder, decoder = spec.encoder, spec.decoder
    encoder.conv1.weight, encoder.conv1.bias = random(DIM, MELS, 3), random(DIM)
    encoder.conv2.weight, encoder.conv2.bias = random(DIM, DIM, 3), random(DIM)
    encoder.position_encodings.encodings = random(AUDIO_STEPS, DIM)
    decoder.position_encodings.encodings = random(TEXT_STEPS, DIM)
    decoder.embeddings.weight = random(TOKENS, DIM)
    decoder.projection.weight = random(TOKENS, DIM)
    for side in (encoder, decoder):
        (layer,) = side.layer
        for part in (side, layer.self_attention, layer.ffn):
            norm(part.layer_norm)
        linear(layer.self_attention.linear[0], 3 * DIM, DIM)
        linear(layer.self_attention.linear[1], DIM, DIM)
        linear(layer.ffn.linear_0, 4 * DIM, DIM)
        linear(layer.ffn.linear_1, DIM, 4 * DIM)
    across = decoder.layer[0].attention
    norm(across.layer_norm)
    for part, out in zip(across.linear, (DIM, 2 * DIM, DIM), strict=True):
        linear(part, out, DIM)
