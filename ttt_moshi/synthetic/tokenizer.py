"""A small SentencePiece tokenizer with the special ids that Moshi expects.

Moshi's 32k tokenizer has 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3 `<pad>`. Moshi's text stream uses 3 as padding and 0 as end of
padding, so ordinary text must never encode to either: every printable ASCII character gets a piece.
"""

from __future__ import annotations

import io
import string
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from ttt_moshi.errors import UserError

UNK_ID, BOS_ID, EOS_ID, PAD_ID = 0, 1, 2, 3
REQUIRED_CHARACTERS = "".join(c for c in string.printable if not c.isspace())
SMALLEST_VOCABULARY = len(REQUIRED_CHARACTERS) + 8


def train_tokenizer(words: Iterable[str], path: Path, vocabulary: int = 256) -> sentencepiece.SentencePieceProcessor:
    """Trains a BPE model on words and writes it to `path`. One thread, so equal words give equal files.

    The vocabulary is smaller than `vocabulary` when the words do not yield that many pieces.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise UserError(f"a vocabulary of {vocabulary} cannot hold every character: use {SMALLEST_VOCABULARY} or more")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=PAD_ID,
        required_chars=REQUIRED_CHARACTERS,
        user_defined_symbols=["\n"],
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
