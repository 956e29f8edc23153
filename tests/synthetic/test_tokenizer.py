"""The small tokenizer keeps Moshi's special ids free."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from ttt_moshi.errors import UserError
from ttt_moshi.synthetic.tokenizer import train_tokenizer

WORDS = ["Hello,", "I", "am", "Moshi.", "What", "is", "your", "name?"] * 20


def test_special_ids_are_those_of_moshi_and_text_never_gives_them(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(WORDS, tmp_path / "t.model", 160)
    assert [tokenizer.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<pad>"]
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (0, 1, 2, 3)
    for text in [*WORDS, *string.printable]:
        assert all(token > 3 for token in tokenizer.encode(text))
    assert tokenizer.encode("\n"), "moshi-finetune takes the last token of a newline"
    for word in WORDS:
        assert tokenizer.decode(tokenizer.encode(word)) == word


def test_training_is_deterministic(tmp_path: Path) -> None:
    train_tokenizer(WORDS, tmp_path / "a.model", 160)
    train_tokenizer(iter(WORDS), tmp_path / "b.model", 160)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_a_vocabulary_without_room_for_the_characters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot hold every character"):
        train_tokenizer(WORDS, tmp_path / "t.model", 50)
