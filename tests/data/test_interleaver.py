"""The text stream against rows written by hand, and against a second implementation that counts frame by frame."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_moshi.data.interleaver import TextStyle, absent_row, text_row
from ttt_moshi.data.transcripts import Word

E, P = 0, 3


class Letters:
    """One token per letter, so that rows can be written by hand: a is 10, b is 11, ..."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") + 10 for letter in text]


def row(*words: tuple[str, float, float], frames: int, speaker: str = "SPEAKER_MAIN") -> list[int]:
    return text_row([Word(*word, speaker) for word in words], Letters(), frames).tolist()


def at(frame: float) -> float:
    return frame * 0.08


def test_a_word_starts_in_its_frame_after_an_end_of_padding():
    assert row(("ab", at(3.5), at(6)), frames=8) == [P, P, E, 10, 11, P, P, P]


def test_a_start_on_a_frame_boundary_belongs_to_the_frame_it_begins():
    for seconds in range(2, 100, 2):  # 25 frames each, exact in binary
        frames = seconds * 25 // 2 + 1
        assert row(("a", float(seconds), seconds + 0.1), frames=frames)[-3:] == [P, E, 10]
        assert row(("a", np.nextafter(seconds, 0), seconds + 0.1), frames=frames)[-3:] == [E, 10, P]


def test_no_end_of_padding_fits_before_the_first_frame():
    assert row(("ab", 0.0, 0.1), frames=3) == [10, 11, P]


def test_no_end_of_padding_between_adjacent_words():
    assert row(("ab", at(1), at(2)), ("c", at(3), at(4)), frames=5) == [E, 10, 11, 12, P]


def test_one_frame_between_words_is_end_of_padding():
    assert row(("a", at(1), at(2)), ("c", at(3), at(4)), frames=5) == [E, 10, E, 12, P]


def test_words_are_written_later_than_they_are_heard():
    """Speech to text: all of it moves; what would be written after the end is not."""
    style = TextStyle(delay=2)
    words = [Word("ab", at(0), at(1), "SPEAKER_MAIN"), Word("cde", at(4), at(5), "SPEAKER_MAIN")]
    assert text_row(words, Letters(), 8, style).tolist() == [P, E, 10, 11, P, E, 12, 13]


def test_the_next_word_cuts_a_long_one_short():
    assert row(("abcd", at(1), at(2)), ("x", at(3), at(4)), frames=6) == [E, 10, 11, 33, P, P]


def test_of_words_in_one_frame_the_last_is_kept():
    assert row(("ab", at(1.1), at(1.2)), ("xy", at(1.6), at(1.9)), frames=5) == [E, 33, 34, P, P]


def test_a_word_without_tokens_still_ends_the_one_before():
    assert row(("abc", at(1), at(2)), ("", at(2), at(3)), frames=5) == [E, 10, P, P, P]


def test_other_speakers_and_words_without_duration_are_left_out():
    assert row(("a", at(1), at(2)), frames=4, speaker="SPEAKER_OTHER") == [P] * 4
    assert row(("a", at(1), at(1)), ("b", at(2), at(1)), frames=4) == [P] * 4


def test_words_beyond_the_end():
    assert row(("abcd", at(2), at(9)), frames=4) == [P, E, 10, 11]
    assert row(("a", at(4), at(5)), frames=4) == [P] * 4
    assert row(("a", at(40), at(50)), frames=4) == [P] * 4


def test_no_words_is_padding_and_no_transcript_is_absence():
    assert row(frames=3) == [P] * 3
    assert absent_row(3).tolist() == [-1] * 3


def count_frame_by_frame(words: list[Word], frames: int) -> list[int]:
    """The convention as an automaton: at every frame take up the words that have begun, then write one token."""
    out: list[int] = []
    waiting: list[int] = []
    queue = [word for word in words if word.speaker == "SPEAKER_MAIN" and word.end > word.start]
    for frame in range(frames):
        while queue and queue[0].start * 12.5 < frame + 1:
            waiting = Letters().encode(queue.pop(0).text)
        if waiting:
            if out and out[-1] == P:
                out[-1] = E
            out.append(waiting.pop(0))
        else:
            out.append(P)
    return out


times = st.floats(0, 4, allow_nan=False)
word = st.builds(
    Word,
    st.text("abcxyz", max_size=6),
    times,
    times,
    st.sampled_from(["SPEAKER_MAIN", "SPEAKER_MAIN", "SPEAKER_OTHER"]),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(word, max_size=25), st.integers(1, 50))
def test_equals_the_automaton(words, frames):
    words.sort(key=lambda w: w.start)
    assert text_row(words, Letters(), frames).tolist() == count_frame_by_frame(words, frames)


@pytest.mark.parametrize("frames", [1, 7, 13])
def test_with_a_real_tokenizer(tokenizer, frames):
    tokens = tokenizer.encode("hello")
    assert len(tokens) >= 1 and not {0, 3} & set(tokens)
    expected = np.full(frames, 3)
    expected[: len(tokens)] = tokens[:frames]
    assert text_row([Word("hello", 0.0, 1.0, "SPEAKER_MAIN")], tokenizer, frames).tolist() == expected.tolist()
