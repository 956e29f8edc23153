"""From jsonl lines to batches: cuts, ends, channels, text, prefixes, and what is refused."""

import json
import logging

import numpy as np
import pytest
import torch

from ttt_moshi.data import ClipLoader, Corpus, DataError
from ttt_moshi.data.audio import read_audio
from ttt_moshi.data.interleaver import text_row
from ttt_moshi.data.transcripts import read_transcript


@pytest.fixture
def corpus(codec, tokenizer):
    def make(spec, duration_sec=1.0, **options) -> Corpus:
        return Corpus(str(spec), codec, tokenizer, duration_sec, **options)

    return make


def codes_of(codec, path):
    audio = read_audio(path)
    return codec.encode([audio], len(audio)).long()


def test_clips_are_slices_of_one_long_encoding(data_set, corpus, codec, tokenizer):
    jsonl = data_set(2.5)  # 32 frames
    clips = corpus(jsonl)
    batch = clips.read(clips.clips(0))
    wav = jsonl.parent / "wavs" / "0.wav"
    codes = codes_of(codec, wav)
    text = text_row(read_transcript(wav.with_suffix(".json")).words, tokenizer, 32)
    assert batch.codes.shape == (3, 17, 13) and batch.codes.dtype == torch.int64
    assert batch.valid_frames.tolist() == [13, 13, 6]
    joined = torch.cat([row[:, :n] for row, n in zip(batch.codes, batch.valid_frames, strict=True)], dim=1)
    assert torch.equal(joined[0], torch.from_numpy(text).long())
    assert torch.equal(joined[1:9], codes[0])
    assert torch.equal(joined[9:17], codes[1])
    assert (batch.codes[2, :, 6:] == -1).all(), "text and audio end with the recording"
    assert (joined >= 0).all() and set(joined[0].tolist()) >= {0, 3}


def test_a_word_goes_on_behind_the_cut(data_set, corpus, tokenizer):
    jsonl = data_set(2.0)
    tokens = tokenizer.encode("xylophone")
    assert len(tokens) >= 3
    document = {"alignments": [["xylophone", [0.97, 1.6], "SPEAKER_MAIN"]]}
    (jsonl.parent / "wavs" / "0.json").write_text(json.dumps(document))
    clips = corpus(jsonl)
    first, second = clips.read(clips.clips(0)).codes[:, 0]
    assert first.tolist() == [3] * 11 + [0, tokens[0]]
    assert second[: len(tokens) - 1].tolist() == tokens[1:]


def test_a_line_may_use_less_than_the_recording(data_set, corpus):
    jsonl = data_set(2.0)
    jsonl.write_text('{"path": "wavs/0.wav", "duration": 0.5}\n')
    batch = corpus(jsonl).read(corpus(jsonl).clips(0))
    assert batch.valid_frames.tolist() == [7]


def test_prefix_reaches_into_later_clips(data_set, corpus):
    clips = corpus(data_set(2.5, prefix_sec=1.2))
    assert clips.read(clips.clips(0)).prefix_lengths.tolist() == [13, 2, 0]
    clips = corpus(data_set(2.5, prefix_sec=60, name="all"))
    assert clips.read(clips.clips(0)).prefix_lengths.tolist() == [13, 13, 6]


def test_mono_is_moshi_and_its_user_is_silent(tmp_path, corpus, codec, write_recording):
    write_recording(tmp_path / "m.wav", 2.0, channels=1, rate=8000)
    (tmp_path / "d.jsonl").write_text('{"path": "m.wav", "duration": 2.0}\n')
    clips = corpus(tmp_path / "d.jsonl")
    second = clips.read(clips.clips(0)[1:]).codes[0]
    assert torch.equal(second[1:9, :12], codes_of(codec, tmp_path / "m.wav")[0, :, 13:])
    assert torch.equal(second[9:, :12], codec.silence(13, 12).long())


def test_without_transcript_the_text_is_absent(tmp_path, corpus, write_recording, caplog):
    write_recording(tmp_path / "m.wav", 1.0)
    (tmp_path / "d.jsonl").write_text('{"path": "m.wav", "duration": 1.0}\n')
    with caplog.at_level(logging.WARNING):
        clips = corpus(tmp_path / "d.jsonl")
    assert "1 of 1 recordings have no transcript" in caplog.text
    assert (clips.read(clips.clips(0)).codes[0, 0] == -1).all()


@pytest.mark.parametrize(("moshi", "channel", "word"), [("A", 0, "hello"), ("B", 1, "fine")])
def test_either_speaker_of_a_dialogue_may_be_moshi(
    tmp_path, corpus, codec, tokenizer, write_recording, moshi, channel, word
):
    wav = write_recording(
        tmp_path / "m.wav",
        1.0,
        document=[
            {"speaker": "A", "word": "hello", "start": 0.0, "end": 0.4},
            {"speaker": "B", "word": "fine", "start": 0.0, "end": 0.4},
        ],
    )
    (tmp_path / "d.jsonl").write_text(json.dumps({"path": "m.wav", "duration": 1.0, "moshi_speaker": moshi}))
    clips = corpus(tmp_path / "d.jsonl")
    row = clips.read(clips.clips(0)).codes[0]
    codes = codes_of(codec, wav)
    assert torch.equal(row[1:9], codes[channel]) and torch.equal(row[9:], codes[1 - channel])
    tokens = tokenizer.encode(word)
    assert row[0, : len(tokens)].tolist() == tokens


def test_paths_are_relative_to_the_jsonl_file_or_the_working_folder(tmp_path, corpus, write_recording, monkeypatch):
    write_recording(tmp_path / "work" / "w.wav", 1.0)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "d.jsonl").write_text('{"path": "w.wav", "duration": 1.0}\n')
    with pytest.raises(DataError, match=r"w\.wav"):
        corpus(tmp_path / "lists")
    monkeypatch.chdir(tmp_path / "work")
    assert len(corpus(tmp_path / "lists").clips(0)) == 1


def test_cache_lies_beside_the_jsonl_file_or_where_asked(data_set, corpus, tmp_path):
    jsonl = data_set(1.0)
    clips = corpus(jsonl)
    clips.read(clips.clips(0))
    assert len(list((jsonl.parent / ".mimi_codes").glob("*.safetensors"))) == 1
    clips = corpus(jsonl, cache_dir=tmp_path / "elsewhere")
    clips.encode_all()
    assert len(list((tmp_path / "elsewhere").glob("*.safetensors"))) == 1


def test_ranks_encode_everything_between_them(data_set, corpus):
    jsonl = data_set(1.0, 1.1, 1.2)
    steps = []
    corpus(jsonl).encode_all(0, 2, lambda *step: steps.append(step))
    corpus(jsonl).encode_all(1, 2, lambda *step: steps.append(step))
    assert len(list((jsonl.parent / ".mimi_codes").glob("*.safetensors"))) == 3
    assert steps[-1] == ("1.wav", 27, 27) and ("2.wav", 15, 15) in steps


def test_ranks_have_alike_much_to_encode(data_set, corpus):
    """By length: one long recording is as much work as all the others."""
    jsonl = data_set(0.2, 3.2, 0.4, 0.8, 0.2, 1.6)
    totals = []
    for rank in range(2):
        corpus(jsonl).encode_all(rank, 2, lambda name, done, total: totals.append((name, total)))
    assert {total for _, total in totals} == {40, 41}
    assert len({name for name, _ in totals}) == 6


def test_memory_holds_few_recordings(data_set, corpus):
    clips = corpus(data_set(*[0.1] * 40))
    batch = clips.read(clips.clips(0))
    again = clips.read(clips.clips(0))
    assert torch.equal(batch.codes, again.codes)
    assert len(clips._loaded) == 32


def test_fingerprint_is_that_of_the_data_not_of_the_place(data_set, corpus, codec, tmp_path):
    jsonl = data_set(1.0, 2.0)
    first = corpus(jsonl).fingerprint
    moved = jsonl.parent.rename(tmp_path / "moved") / "data.jsonl"
    assert corpus(moved).fingerprint == first
    assert corpus(moved, duration_sec=2.0).fingerprint != first
    assert corpus(f"{moved}:2").fingerprint != first
    (moved.parent / "wavs" / "1.json").write_text('{"alignments": []}')
    assert corpus(moved).fingerprint != first


def test_neither_identity_nor_order_knows_how_a_path_is_spelt(data_set, corpus):
    jsonl = data_set(1.0, 1.2, 1.4, 1.6)
    first = corpus(jsonl)
    loader = ClipLoader(first, seed=3, shuffle=True)
    lines = [json.loads(line) for line in jsonl.read_text().splitlines()]
    for line in lines:
        line["path"] = str(jsonl.parent / line["path"])
    other = jsonl.parent / "other" / "absolute.jsonl"
    other.parent.mkdir()
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    second = corpus(other.parent)
    assert second.fingerprint == first.fingerprint
    assert loader.batch(0, 12).sample_ids == ClipLoader(second, seed=3, shuffle=True).batch(0, 12).sample_ids


@pytest.mark.parametrize("what", ["audio", "transcripts", "a word", "one more"])
def test_another_content_is_another_fingerprint(data_set, corpus, what):
    """Also where every size and every name stays."""
    jsonl = data_set(1.0, 1.0)
    first = corpus(jsonl)
    wavs = jsonl.parent / "wavs"
    if what == "one more":
        jsonl.write_text(jsonl.read_text() + '{"path": "wavs/1.wav", "duration": 1.0}\n')
    elif what == "a word":
        transcript = (wavs / "0.json").read_text()
        (wavs / "0.json").write_text(transcript.replace("hello", "jello"))
    else:
        suffix = ".wav" if what == "audio" else ".json"
        if what == "transcripts":
            (wavs / "1.json").write_text((wavs / "0.json").read_text().replace("hello", "other"))
            first = corpus(jsonl)
        a, b = wavs / f"0{suffix}", wavs / f"1{suffix}"
        assert a.stat().st_size == b.stat().st_size
        a.rename(wavs / "aside"), b.rename(a), (wavs / "aside").rename(b)
    assert corpus(jsonl).fingerprint != first.fingerprint
    assert corpus(jsonl).identity["recordings"] != first.identity["recordings"]


def test_one_audio_file_may_be_listed_twice(data_set, corpus):
    """Once with either speaker as Moshi: two recordings, two ids, two contents."""
    jsonl = data_set(1.0)
    line = json.loads(jsonl.read_text())
    jsonl.write_text(json.dumps(line) + "\n" + json.dumps({**line, "moshi_speaker": "B"}) + "\n")
    clips = corpus(jsonl)
    batch = clips.read(clips.clips(0))
    assert len(set(batch.sample_ids)) == 2
    assert torch.equal(batch.codes[0, 1:9], batch.codes[1, 9:])
    assert not torch.equal(batch.codes[0, 1:9], batch.codes[1, 1:9])


@pytest.mark.parametrize("suffix", [".wav", ".json"])
def test_a_file_that_changes_under_a_run_is_noticed(data_set, corpus, suffix):
    jsonl = data_set(1.0, 1.0)
    clips = corpus(jsonl)
    clips.read(clips.clips(0)[:1])
    changed = jsonl.parent / "wavs" / f"1{suffix}"
    changed.write_bytes(changed.read_bytes().replace(b"hello", b"jello") + b" ")
    with pytest.raises(DataError, match=rf"1\{suffix} is not what it was"):
        clips.read(clips.clips(0)[1:])


def test_overlong_durations_of_rounding_are_taken(data_set, corpus):
    jsonl = data_set(1.0)
    jsonl.write_text('{"path": "wavs/0.wav", "duration": 1.05}\n')
    clips = corpus(jsonl, duration_sec=2.0)
    assert clips.read(clips.clips(0)).valid_frames.tolist() == [13]


LINE = '{"path": "wavs/0.wav", "duration": 1.0}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "wavs/none.wav", "duration": 1.0}', r"line 1: no audio file wavs/none.wav"),
        (LINE + "\n" + LINE[:-1], r"line 2 is not valid JSON"),
        ("[1, 2]", r"line 1 is not \{\"path\""),
        ('{"path": "wavs/0.wav"}', r"line 1: `duration` must be a number of seconds, got None"),
        ('{"path": "wavs/0.wav", "duration": NaN}', r"`duration` must be a number of seconds, got nan"),
        ('{"path": "wavs/0.wav", "duration": 1.0, "prefix_sec": -1}', r"`prefix_sec` must be"),
        ('{"path": "wavs/0.wav", "duration": 1.0, "moshi_speaker": "C"}', r"`moshi_speaker` is A"),
        ('{"path": "wavs/0.wav", "duration": 9.0}', r"duration is 9.00 s but .*0.wav has 1.00 s"),
        ('{"path": "wavs/0.wav", "duration": 0.01}', r"less than one frame"),
        ("\n\n", r"lists no recordings"),
    ],
)
def test_a_bad_line_is_named(data_set, corpus, text, message):
    jsonl = data_set(1.0)
    jsonl.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        corpus(jsonl)
    assert "data.jsonl" in str(error.value) or "recordings" in message
    assert "\n" not in str(error.value)


def test_a_recording_shorter_than_a_frame_is_named(tmp_path, corpus, write_recording):
    write_recording(tmp_path / "s.wav", 0.05)
    (tmp_path / "d.jsonl").write_text('{"path": "s.wav", "duration": 0.08}\n')
    with pytest.raises(DataError, match=r"s.wav has 0.050 s, less than one frame"):
        corpus(tmp_path / "d.jsonl")


def test_a_corrupt_transcript_is_named(data_set, corpus):
    jsonl = data_set(1.0)
    (jsonl.parent / "wavs" / "0.json").write_text('{"alignments": [')
    clips = corpus(jsonl)
    with pytest.raises(DataError, match=r"0\.json is no transcript .* not valid JSON"):
        clips.read(clips.clips(0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no data"),
        ("{jsonl}:0", "greater than 0"),
        ("{jsonl}:many", "belongs a weight"),
        ("{jsonl},{jsonl}:2", "named twice"),
        ("{jsonl}x", "neither a jsonl file nor a folder"),
        ("{folder}/wavs", r"holds no file that ends in .jsonl"),
    ],
)
def test_a_bad_list_of_sources_is_explained(data_set, corpus, spec, message):
    jsonl = data_set(1.0)
    with pytest.raises(DataError, match=message):
        corpus(spec.format(jsonl=jsonl, folder=jsonl.parent))


def test_text_of_fixture_words(data_set):
    """The fixture's transcripts say something in every second, so that the tests above compare more than padding."""
    jsonl = data_set(2.0)
    words = read_transcript(jsonl.parent / "wavs" / "0.json").words
    assert np.diff([w.start for w in words if w.speaker == "SPEAKER_MAIN"]).max() < 1
