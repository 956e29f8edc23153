"""A tokenizer that does not belong to the model, or does not know the words, is noticed at the start."""

from __future__ import annotations

import io
import json

import pytest
import sentencepiece

from ttt_moshi.data import Alphabet, Corpus, DataError
from ttt_moshi.data.tokenizer import check_tokenizer, coverage

TEXT = ["hello there how are you today", "fine thanks and you", "the quick brown fox", "zebra yacht xylophone jumbo"]


def train(**options) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    defaults = {"vocab_size": 60, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3, "model_type": "bpe"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20), model_writer=model, minloglevel=2, **{**defaults, **options}
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize(
    ("options", "card", "message"),
    [
        ({}, 61, "60 pieces and the model's text stream 61"),
        ({}, 59, "60 pieces and the model's text stream 59"),
        ({"pad_id": -1}, 60, "piece 3 of the tokenizer is"),
        ({"unk_id": 4, "pad_id": 3, "bos_id": 1, "eos_id": 2}, 60, "piece 0 of the tokenizer is"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(options, card, message):
    with pytest.raises(DataError, match=message):
        check_tokenizer(train(**options), card)


def test_the_models_own_tokenizer_is_taken():
    check_tokenizer(train(), 60)


def test_a_corpus_asks_at_its_start(data_set, codec, tokenizer):
    jsonl = str(data_set(1.0))
    Corpus(jsonl, codec, tokenizer, 1.0, alphabet=Alphabet(17, 60, 32))
    with pytest.raises(DataError, match="60 pieces"):
        Corpus(jsonl, codec, tokenizer, 1.0, alphabet=Alphabet(17, 32000, 32))


def test_unknown_words_and_bytes_are_counted():
    found = coverage(train(), ["hello", "Привет", "hello", "привет", "привет"])
    assert (found.words, found.unknown, found.in_bytes, found.example) == (5, 3, 0, "привет")
    spelt = coverage(train(vocab_size=320, byte_fallback=True), ["hello", "привет"])
    assert (spelt.words, spelt.unknown, spelt.in_bytes, spelt.example) == (2, 0, 1, "привет")


@pytest.mark.parametrize(("word", "times"), [("привет", 1), ("привет", 9)])
def test_training_is_told_of_words_that_it_cannot_learn(data_set, codec, tokenizer, caplog, word, times):
    jsonl = data_set(8.0)
    words = [(word if i < times else "hello") for i in range(20)]
    document = {"alignments": [[w, [0.3 * i, 0.3 * i + 0.2], "SPEAKER_MAIN"] for i, w in enumerate(words)]}
    (jsonl.parent / "wavs" / "0.json").write_text(json.dumps(document))
    corpus = Corpus(str(jsonl), codec, tokenizer, 1.0)
    if times > 2:
        with pytest.raises(DataError, match="does not know 9"):
            corpus.encode_all()
    else:
        corpus.encode_all()
        assert "of 20 words of the agent the tokenizer does not know 1" in caplog.text
