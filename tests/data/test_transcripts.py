"""Both transcript layouts, and what is refused."""

import json

import pytest

from ttt_moshi.data import DataError
from ttt_moshi.data.transcripts import Word, alignments, read_transcript


@pytest.fixture
def write(tmp_path):
    def write(document) -> object:
        path = tmp_path / "a.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


def test_moshi_finetunes_layout(write):
    path = write({"alignments": [["hello", [0.5, 0.9], "SPEAKER_MAIN"], ["hm", [0.1, 0.2], "SPEAKER_00"]], "x": 1})
    transcript = read_transcript(path)
    assert transcript.words == (Word("hm", 0.1, 0.2, "SPEAKER_00"), Word("hello", 0.5, 0.9, "SPEAKER_MAIN"))
    assert transcript.layout == "alignments" and not transcript.approximate
    assert alignments(transcript.words)[1] == ["hello", [0.5, 0.9], "SPEAKER_MAIN"]


@pytest.mark.parametrize(("moshi", "main"), [("A", ["yes"]), ("B", ["no", "never"])])
def test_nu_dialogues_layout(write, moshi, main):
    words = [("A", "yes", 0, 1), ("B", "no", 1, 2), ("B", "never", 2, 3)]
    path = write([{"speaker": s, "word": w, "start": a, "end": b} for s, w, a, b in words])
    transcript = read_transcript(path, moshi)
    assert [w.text for w in transcript.words if w.speaker == "SPEAKER_MAIN"] == main
    assert len(transcript.words) == 3


def test_words_are_ordered_by_start_and_ties_keep_their_order(write):
    path = write({"alignments": [["c", [2, 3], "S"], ["a", [1, 2], "S"], ["b", [1, 1.5], "S"]]})
    assert [word.text for word in read_transcript(path).words] == ["a", "b", "c"]


def test_white_space_inside_words_is_one_space(write):
    path = write({"alignments": [[" New\nYork ", [0, 1], "S"]]})
    assert read_transcript(path).words[0].text == "New York"


def test_no_words_is_a_transcript_too(write):
    assert read_transcript(write({"alignments": []})).words == ()
    assert read_transcript(write([])).words == ()


def test_approximate_times_are_marked(write):
    assert read_transcript(write({"alignments": [], "word_times": "approximate"})).approximate


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "not valid JSON"),
        ('{"alignments": [["a", [0, 1]', "not valid JSON"),
        ({"words": []}, "is no transcript"),
        ("3", "is no transcript"),
        ({"alignments": {}}, "is no transcript"),
        ({"alignments": [["a", [0, 1]]]}, "alignment 0 is not"),
        ({"alignments": [["a", [0, 1], "S"], ["a", 3, "S"]]}, "alignment 1 is not"),
        ({"alignments": [["a", [-0.1, 1], "S"]]}, r"word 0 \('a'\) has the times \[-0.1, 1\]"),
        ({"alignments": [["a", [0, None], "S"]]}, "has the times"),
        ('{"alignments": [["a", [0, NaN], "S"]]}', "has the times"),
        ('{"alignments": [["a", [0, Infinity], "S"]]}', "has the times"),
        ({"alignments": [["a", ["0", "1"], "S"]]}, "has the times"),
        ({"alignments": [["a", [True, True], "S"]]}, "has the times"),
        ({"alignments": [[7, [0, 1], "S"]]}, "needs a text and a speaker"),
        ([{"speaker": "A", "word": "a", "start": 0}], "entry 0 lacks one of"),
        (["a"], "entry 0 lacks one of"),
        ([{"speaker": "C", "word": "a", "start": 0, "end": 1}], "has speaker 'C'"),
    ],
)
def test_what_cannot_be_used_is_named(write, document, message):
    path = write(document)
    with pytest.raises(DataError, match=message) as error:
        read_transcript(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path):
    with pytest.raises(DataError, match="no transcript at"):
        read_transcript(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b'\xff\xfe["')
    with pytest.raises(DataError, match="not valid JSON"):
        read_transcript(tmp_path / "a.json")
