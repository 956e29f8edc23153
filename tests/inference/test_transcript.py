"""Words from pieces."""

from ttt_moshi.data.words import TimedWord
from ttt_moshi.inference import words


def test_pieces_join_into_words():
    pieces = ["", "▁Good", "bye", "", "▁", "Ann", "", ".", "▁Yes"]
    assert words(pieces, 10.0) == [
        TimedWord("Goodbye", 0.1, 0.3),
        TimedWord("Ann.", 0.4, 0.8),
        TimedWord("Yes", 0.8, 0.9),
    ]


def test_a_first_piece_without_a_beginning_is_a_word():
    assert words(["lo", "", "▁"], 12.5) == [TimedWord("lo", 0.0, 0.08)]
    assert words(["", ""], 12.5) == []
