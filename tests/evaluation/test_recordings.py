"""Sound files through a real codec: modes of the text and user streams, joins, silence."""

import json

import numpy as np
import pytest
import soundfile
import torch

from ttt_moshi.config import ModelPaths
from ttt_moshi.data import Codec
from ttt_moshi.errors import UserError
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece, Segment, Source
from ttt_moshi.evaluation.scoring.recordings import Recordings, as_batch, count_frames
from ttt_moshi.moshi import resolve_model


@pytest.fixture(scope="module")
def info(tiny_material):
    return resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)))


@pytest.fixture(scope="module")
def codec(info):
    return Codec(info.get_mimi("cpu"), info.mimi_config)


@pytest.fixture(scope="module")
def speech(tiny_material):
    """The first seconds of Moshi's side of a generated dialogue."""
    path = sorted((tiny_material.folder / "eval").rglob("*.wav"))[0]
    samples, rate = soundfile.read(path, dtype="float32")
    return samples[: 4 * rate], rate


def write(path, samples, rate):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def test_streams_of_an_audio_only_benchmark(tmp_path, codec, speech):
    path = write(tmp_path / "a.wav", speech[0][:, 0], speech[1])
    tokens = Recordings(codec, tmp_path / "codes").tokens(Example.file("a", path))
    assert tokens.shape == (17, 50)
    assert (tokens[0] == -1).all()  # text absent
    assert (tokens[1:9] >= 0).all() and len(np.unique(tokens[1:9])) > 20
    np.testing.assert_array_equal(tokens[9:], codec.silence(0, 50))
    assert (tokens[9:] != 0).any()  # silence is a sound, not code 0
    absent = Recordings(codec, tmp_path / "codes", user="absent", text="pad").tokens(Example.file("a", path))
    assert (absent[9:] == -1).all() and (absent[0] == 3).all()
    np.testing.assert_array_equal(absent[1:9], tokens[1:9])


def test_silence_is_that_of_one_long_encoding(codec):
    """Not one frame tiled: its first frames differ; and a shorter encoding is its beginning."""
    long = codec.encode([np.zeros((1, 40 * 1920), np.float32)], 1)[0]
    np.testing.assert_array_equal(codec.silence(0, 40), long)
    np.testing.assert_array_equal(codec.encode([np.zeros((1, 10 * 1920), np.float32)], 1)[0], long[:, :10])


def test_stereo_recordings(tmp_path, codec, speech):
    path = write(tmp_path / "s.wav", *speech)
    natural = Recordings(codec, tmp_path / "codes", user="natural").tokens(Example.file("s", path))
    for side, rows in ((0, slice(1, 9)), (1, slice(9, 17))):
        mono = write(tmp_path / f"{side}.wav", speech[0][:, side], speech[1])
        alone = Recordings(codec, tmp_path / "codes").tokens(Example.file("m", mono))
        np.testing.assert_array_equal(natural[rows], alone[1:9])
    mixed = Recordings(codec, tmp_path / "codes").tokens(Example.file("s", path))
    assert mixed.shape == natural.shape  # both voices on Moshi's side
    with pytest.raises(EvaluationError, match="not stereo"):
        Recordings(codec, tmp_path / "codes", user="natural").tokens(Example.file("m", tmp_path / "0.wav"))


def test_segments_are_encoded_as_one_recording_and_kept(tmp_path, codec, speech):
    samples, rate = speech[0][:, 0], speech[1]
    whole = write(tmp_path / "whole.wav", samples, rate)
    cut = [write(tmp_path / f"{i}.wav", part, rate) for i, part in enumerate(np.array_split(samples, 3))]
    recordings = Recordings(codec, tmp_path / "codes")
    expected = recordings.sides(Source.file(whole))
    joined = Source(tuple(Segment(path) for path in cut))
    np.testing.assert_array_equal(recordings.sides(joined), expected)
    thirds = Source((Segment(whole, 0, 1.5), Segment(whole, 1.5, None)))
    np.testing.assert_array_equal(recordings.sides(thirds), expected)
    files = sorted((tmp_path / "codes").glob("joined-*"))
    assert len(files) == 2
    before = [f.stat().st_mtime_ns for f in files]
    recordings.sides(joined)
    assert [f.stat().st_mtime_ns for f in files] == before
    for content in (files[0].read_bytes()[:50], b"", bytes(files[0].read_bytes()[:-1]) + b"?"):
        files[0].write_bytes(content)  # truncated, emptied, changed: made again
        again = Recordings(codec, tmp_path / "codes")
        for source in (joined, thirds):
            np.testing.assert_array_equal(again.sides(source), expected)
    assert sorted((tmp_path / "codes").glob("joined-*")) == files
    example = Example("x", (Piece(joined, 10, 20), Piece(joined, 45)))
    tokens = recordings.tokens(example)
    assert count_frames(example) == tokens.shape[1] == 15
    np.testing.assert_array_equal(tokens[1:9, :10], expected[0][:, 10:20])


def test_given_text_comes_from_the_transcript_beside_the_recording(tmp_path, codec, info, speech):
    path = write(tmp_path / "a.wav", speech[0][:, 0], speech[1])
    words = [["hello", [0.5, 0.9], "SPEAKER_MAIN"], ["there", [2.0, 2.4], "SPEAKER_MAIN"]]
    path.with_suffix(".json").write_text(json.dumps({"alignments": words}))
    tokenizer = info.get_text_tokenizer()
    recordings = Recordings(codec, tmp_path / "codes", text="given", tokenizer=tokenizer)
    text = recordings.tokens(Example.file("a", path))[0]
    assert text[6] == tokenizer.encode("hello")[0] and text[5] == 0 and text[0] == 3
    later = Example("b", (Piece(Source.file(path), 20),), path.with_suffix(".json"), 20)
    np.testing.assert_array_equal(recordings.tokens(later)[0], text[20:])
    path.with_suffix(".json").unlink()
    with pytest.raises(EvaluationError, match="needs a transcript"):
        recordings.tokens(Example.file("a", path))


def test_a_data_set_is_identified_by_what_it_holds(tmp_path, codec, speech):
    recordings = Recordings(codec, tmp_path / "codes")
    a, b = (write(tmp_path / f / "x.wav", speech[0][:, 0], speech[1]) for f in "ab")
    same = recordings.digest([Example.file("x", a)]), recordings.digest([Example.file("x", b)])
    assert same[0] == same[1]
    write(b, speech[0][:, 1], speech[1])
    assert Recordings(codec, tmp_path / "codes").digest([Example.file("x", b)]) != same[0]


def test_batches_are_padded_on_the_right():
    codes, frames = as_batch([np.ones((17, 3), np.int32), np.ones((17, 5), np.int32)])
    assert codes.shape == (2, 17, 5) and codes.dtype == torch.int64
    assert frames.tolist() == [3, 5]
    assert (codes[0, :, 3:] == -1).all() and (codes[0, :, :3] == 1).all()


def test_a_missing_file_is_an_error_with_its_name(tmp_path, codec):
    with pytest.raises(Exception, match=r"gone\.wav") as error:
        Recordings(codec, tmp_path / "codes").tokens(Example.file("g", tmp_path / "gone.wav"))
    assert isinstance(error.value, UserError)
