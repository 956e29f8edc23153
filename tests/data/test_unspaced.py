"""Scripts without spaces: cut where they may be, encoded together, written when they are said, and read back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from ttt_moshi.data import Corpus, TextStyle
from ttt_moshi.data.interleaver import text_row
from ttt_moshi.data.transcripts import MAIN_SPEAKER, Word, read_any, read_transcript
from ttt_moshi.data.unspaced import bare_tokens, join_words, split_words
from ttt_moshi.inference import words
from ttt_moshi.inference.transcript import PieceReader

JAPANESE = ["今日は天気がいいですね", "明日は雨です", "ありがとうございます", "New York は寒いです"]
CYRILLIC = ["сегодня хорошая погода", "завтра будет дождь", "большое спасибо"]
UNSPACED = TextStyle(no_whitespace_before_word=True)


@pytest.fixture(scope="module")
def train() -> Callable[..., sentencepiece.SentencePieceProcessor]:
    def make(texts: list[str], pieces: int = 330) -> sentencepiece.SentencePieceProcessor:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 20), model_writer=model, vocab_size=pieces, model_type="bpe", unk_id=0,
            bos_id=1, eos_id=2, pad_id=3, byte_fallback=True, hard_vocab_limit=False, num_threads=1, minloglevel=2,
        )  # fmt: skip
        return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    return make


@pytest.fixture(scope="module")
def japanese(train):
    return train(JAPANESE, 300)


def read_back(row, tokenizer, style: TextStyle) -> list:
    pieces = ["" if token in (style.pad, style.epad) else tokenizer.id_to_piece(token) for token in row.tolist()]
    return words(pieces, 12.5)


def said(*given: tuple[str, float, float]) -> list[Word]:
    return [Word(*word, MAIN_SPEAKER) for word in given]


def test_text_is_cut_where_it_may_be():
    assert split_words("今日は、 New York。") == ["今", "日", "は、", "New", "York。"]
    assert split_words("ไม่ได้") == ["ไ", "ม่", "ไ", "ด้"]  # marks stay with their letter
    assert split_words("сегодня дождь") == ["сегодня", "дождь"]
    assert split_words("«今»x") == ["«今»", "x"]
    assert split_words("今「日」the(x)") == ["今", "「日」", "the(x)"]
    assert join_words(["New", "York", "は", "寒い", "。"]) == "New Yorkは寒い。"


@given(st.text(st.sampled_from("今日はไม่ aé。、«x1 "), max_size=12))
def test_no_letter_is_lost(text):
    assert "".join(split_words(text)) == "".join(text.split())


def test_japanese_is_encoded_together_and_comes_back(japanese):
    given = said(
        ("今日は", 0.4, 1.0), ("天気", 1.0, 1.4), ("がいい", 1.4, 2.0), ("ですね", 2.0, 2.6), ("明日", 4.0, 4.8)
    )
    row = text_row(given, japanese, 70, UNSPACED)
    assert japanese.piece_to_id("▁") not in row
    found = read_back(row, japanese, UNSPACED)
    assert "".join(word.text for word in found) == "今日は天気がいいですね明日"
    # Every token where its first letter is said: within a frame of the given times.
    at = {word.text[0]: word.start for word in found}
    for letter, seconds in (("今", 0.4), ("天", 1.0), ("明", 4.0)):
        assert abs(at[letter] - seconds) <= 0.08
    # The option changes the row: with spaces every word begins with one, and all tokens come at its start.
    assert (text_row(given, japanese, 70) != row).any()
    spaced = [japanese.id_to_piece(t) for t in text_row(given, japanese, 70).tolist() if t not in (0, 3)]
    assert sum(piece.startswith("▁") for piece in spaced) == len(given)


def test_a_run_ends_before_the_next_begins(japanese):
    hurried = said(("ありがとうございます今日は天気がいいですね" * 2, 0.0, 0.2), ("明日", 1.0, 1.4))
    found = read_back(text_row(hurried, japanese, 30, UNSPACED), japanese, UNSPACED)
    assert any(word.start == pytest.approx(0.96) for word in found)  # 明日, whatever had to be dropped before it
    assert len(text_row(hurried, japanese, 5, UNSPACED)) == 5


def test_letters_in_bytes_become_letters_again(japanese):
    given = said(("鬱", 1.0, 1.5), ("です", 1.5, 2.0))
    row = text_row(given, japanese, 40, UNSPACED)
    pieces = [japanese.id_to_piece(token) for token in row.tolist() if token not in (0, 3)]
    assert sum(piece.startswith("<0x") for piece in pieces) == 3
    found = read_back(row, japanese, UNSPACED)
    assert found[0].text == "鬱" and found[0].start == pytest.approx(0.96)
    assert "".join(word.text for word in found) == "鬱です"


def test_a_letter_that_never_becomes_whole_is_marked():
    assert [w.text for w in words(["<0xE9>", "", "▁a", "<0xAC>", "<0xE9>", "<0xAC>"], 12.5)] == [
        "\ufffd",
        "a\ufffd\ufffd",
    ]
    reader = PieceReader()
    assert [reader.read(piece) for piece in ("▁x", "<0xE9>", "<0xAC>", "<0xB1>", "y")] == ["▁x", "", "", "鬱", "y"]


def test_cyrillic_keeps_its_spaces(train):
    tokenizer = train(CYRILLIC, 300)
    given = said(("большое", 0.5, 1.0), ("спасибо", 1.5, 2.0), ("щука", 3.0, 3.5))
    found = read_back(text_row(given, tokenizer, 60), tokenizer, TextStyle())
    assert [word.text for word in found] == ["большое", "спасибо", "щука"]
    assert bare_tokens("спасибо", tokenizer) != tokenizer.encode("спасибо")
    assert tokenizer.decode(bare_tokens("спасибо", tokenizer)) == "спасибо"


@pytest.mark.parametrize(("pad", "epad"), [(3, 0), (1, 2)])
def test_ids_of_padding_come_from_the_model(japanese, pad, epad):
    style = TextStyle.of_model({"existing_text_padding_id": pad, "existing_text_end_padding_id": epad}, True)
    row = text_row(said(("今日", 1.0, 1.5)), japanese, 20, style)
    assert row[0] == pad and row[11] == epad
    spaced = text_row(said(("今日", 1.0, 1.5)), japanese, 20, TextStyle(pad, epad))
    assert spaced[0] == pad and spaced[11] == epad


def test_transcripts_without_spaces_are_more_than_one_word(tmp_path):
    (tmp_path / "a.txt").write_text("おはようございます。七時に開いて。")
    assert len(read_any(tmp_path / "a.txt").pairs) == len("おはようございます七時に開いて")
    segment = {"segments": [{"start": 1.0, "end": 3.0, "text": "角のパン屋ですよろしく"}]}
    (tmp_path / "b.json").write_text(json.dumps(segment))
    stretch = read_transcript(tmp_path / "b.json")
    assert len(stretch.words) == 11 and stretch.approximate
    word = {"segments": [{"words": [{"word": "コンピュータ", "start": 1.0, "end": 1.6}]}]}
    (tmp_path / "c.json").write_text(json.dumps(word))
    assert [w.text for w in read_transcript(tmp_path / "c.json").words] == ["コンピュータ"]
    assert not read_transcript(tmp_path / "c.json").approximate


def test_training_says_so_when_spaces_would_be_learnt(data_set, codec, japanese, caplog):
    jsonl = data_set(4.0)
    document = {"alignments": [["今日", [0.3 * i, 0.3 * i + 0.2], MAIN_SPEAKER] for i in range(10)]}
    (jsonl.parent / "wavs" / "0.json").write_text(json.dumps(document))
    corpora = [Corpus(str(jsonl), codec, japanese, 1.0, style=style) for style in (UNSPACED, TextStyle())]
    corpora[0].encode_all()
    assert "no_whitespace_before_word" not in caplog.text
    corpora[1].encode_all()
    assert "10 of 10 words of the agent are in a script without spaces" in caplog.text
    assert corpora[0].fingerprint != corpora[1].fingerprint  # a run is not resumed with the other
    rows = [corpus.read(corpus.clips(0)).codes[:, 0] for corpus in corpora]
    assert (rows[0] != rows[1]).any()
