"""Recordings that come as codes: read without a codec, beside sound, and refused where they are not what they claim."""

import gzip
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from ttt_moshi.cli.main import main
from ttt_moshi.data import Alphabet, ClipLoader, Corpus, DataError, EvalSet, names_audio
from ttt_moshi.data.check import check_data
from ttt_moshi.data.encoded import read_encoded, read_encoded_info, write_encoded
from ttt_moshi.data.shards import write_tar

ALPHABET = Alphabet(streams=17, text_card=60, card=32)


def random_codes(frames: int, streams: int = 17, seed: int = 0) -> torch.Tensor:
    codes = torch.randint(-1, 32, (streams, frames), generator=torch.Generator().manual_seed(seed))
    codes[0, 0] = 59
    return codes


@pytest.fixture
def encoded_set(tmp_path):
    """A data set of files of codes with the given numbers of frames; returns its jsonl file."""

    def make(*frames: int, **line: object):
        lines = []
        for i, count in enumerate(frames):
            write_encoded(tmp_path / f"{i}.safetensors", random_codes(count, seed=i))
            lines.append(json.dumps({"path": f"{i}.safetensors", "duration": count * 0.08, **line}))
        (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path / "data.jsonl"

    return make


def open_without_codec(jsonl, alphabet=ALPHABET):
    return Corpus(str(jsonl), None, None, 0.8, alphabet=alphabet)


def test_clips_are_slices_of_the_codes_without_any_codec(encoded_set):
    corpus = open_without_codec(encoded_set(25, 10, prefix_sec=0.16))
    loader = ClipLoader(corpus, seed=0, shuffle=False)
    batch = loader.batch(0, 4)
    assert corpus.streams == 17 and batch.codes.shape == (4, 17, 10) and batch.codes.dtype == torch.int64
    assert batch.valid_frames.tolist() == [10, 10, 5, 10] and batch.prefix_lengths.tolist() == [2, 0, 0, 2]
    first = torch.cat([row[:, :n] for row, n in zip(batch.codes[:3], batch.valid_frames[:3].tolist(), strict=True)], 1)
    assert torch.equal(first, random_codes(25)) and torch.equal(batch.codes[3], random_codes(10, seed=1))
    assert (batch.codes[2, :, 5:] == -1).all()
    corpus.encode_all()
    assert [len(b) for b in EvalSet(corpus).batches(3)] == [3, 1]
    assert not (encoded_set(1).parent / ".mimi_codes").exists()


def test_sound_and_codes_may_stand_in_one_list(encoded_set, data_set, codec, tokenizer):
    codes, sound = encoded_set(25), data_set(2.0)
    assert not names_audio(str(codes)) and names_audio(f"{codes},{sound}")
    corpus = Corpus(f"{codes},{sound}", codec, tokenizer, 0.8)
    alone = Corpus(str(sound), codec, tokenizer, 0.8)
    assert torch.equal(corpus.read(corpus.clips(1)).codes, alone.read(alone.clips(0)).codes)
    assert torch.equal(corpus.read(corpus.clips(0)[:1]).codes[0], random_codes(25)[:, :10])
    with pytest.raises(DataError, match=r"0\.wav is audio: it needs a codec"):
        open_without_codec(f"{codes},{sound}")


def test_fingerprint_is_that_of_the_codes(encoded_set, codec, tokenizer):
    jsonl = encoded_set(25)
    first = open_without_codec(jsonl).fingerprint
    assert Corpus(str(jsonl), codec, tokenizer, 0.8).fingerprint == first, "nothing is encoded with this codec"
    write_encoded(jsonl.parent / "0.safetensors", random_codes(25, seed=5))
    assert open_without_codec(jsonl).fingerprint != first


def test_large_tokens_survive(tmp_path):
    codes = torch.tensor([[47_999, -1], [1, 2], [3, 4]])
    write_encoded(tmp_path / "x.safetensors", codes)
    assert torch.equal(read_encoded(tmp_path / "x.safetensors"), codes)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"codes": torch.zeros(17, 9)}, r"must be int16, int32 or int64, it is F32"),
        ({"codes": torch.zeros(17, dtype=torch.int32)}, r"must be \[1 \+ 2K, T\] .* it is \[17\]"),
        ({"codes": torch.zeros(16, 9, dtype=torch.int32)}, r"must be \[1 \+ 2K, T\] .* it is \[16, 9\]"),
        ({"audio": torch.zeros(17, 9, dtype=torch.int32)}, r"must hold one tensor `codes`, it holds audio"),
        ({"codes": torch.zeros(5, 9, dtype=torch.int32)}, r"has 5 streams, 17 are needed"),
    ],
)
def test_files_of_another_content_are_refused_at_once(encoded_set, tensors, message):
    jsonl = encoded_set(9)
    save_file(tensors, jsonl.parent / "0.safetensors")
    with pytest.raises(DataError, match=message) as error:
        open_without_codec(jsonl)
    assert "0.safetensors" in str(error.value)


def test_a_cut_file_is_refused_at_once(encoded_set):
    jsonl = encoded_set(9)
    file = jsonl.parent / "0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"0\.safetensors is not a whole safetensors file"):
        open_without_codec(jsonl)
    file.unlink()
    with pytest.raises(DataError, match=r"line 1: no file of codes 0\.safetensors"):
        open_without_codec(jsonl)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        b"\xff" * 40,
        (3).to_bytes(8, "little") + b"[1]",
        (2).to_bytes(8, "little") + b"{}x",
        (28).to_bytes(8, "little") + b'{"codes":{"data_offsets":0}}',
        (13).to_bytes(8, "little") + b'{"codes":nul}',
    ],
)
def test_a_header_of_anything_else_is_one_error(tmp_path, content):
    (tmp_path / "0.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"0\.safetensors (is not a whole|must hold)"):
        read_encoded_info(tmp_path / "0.safetensors")


def test_tar_files_that_cannot_be_used_are_named(tmp_path, encoded_set):
    jsonl = encoded_set(9)
    write_tar(tmp_path / "a.tar", [("0.safetensors", (tmp_path / "0.safetensors").read_bytes())])
    line = {"path": "a.tar/0.safetensors", "duration": 0.72}
    jsonl.write_text(json.dumps(line))
    assert torch.equal(open_without_codec(jsonl).whole(open_without_codec(jsonl).recordings[0]), random_codes(9))
    jsonl.write_text(json.dumps({**line, "path": "a.tar/1.safetensors"}))
    with pytest.raises(DataError, match=r"line 1: no file of codes a\.tar/1\.safetensors"):
        open_without_codec(jsonl)
    assert [finding.kind for finding in check_data(str(jsonl)).problems] == ["unreadable"]
    (tmp_path / "a.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    jsonl.write_text(json.dumps(line))
    with pytest.raises(DataError, match=r"a\.tar is not a plain tar file"):
        open_without_codec(jsonl)


@pytest.mark.parametrize(
    ("stream", "value", "message"),
    [
        (0, 60, r"stream 0, frame 7 holds 60, not a code of this model, which has 60"),
        (3, 32, r"stream 3, frame 7 holds 32, not a code of this model, which has 32"),
        (16, -2, r"stream 16, frame 7 holds -2"),
    ],
)
def test_codes_that_the_model_does_not_have_are_refused(encoded_set, stream, value, message):
    jsonl = encoded_set(9)
    codes = random_codes(9)
    codes[stream, 7] = value
    write_encoded(jsonl.parent / "0.safetensors", codes)
    corpus = open_without_codec(jsonl)
    with pytest.raises(DataError, match=message):
        corpus.read(corpus.clips(0))


def test_lines_that_do_not_fit_their_codes_are_refused(encoded_set):
    jsonl = encoded_set(9, moshi_speaker="B")
    with pytest.raises(DataError, match=r"line 1: the codes of .* say which streams are Moshi's"):
        open_without_codec(jsonl)
    jsonl.write_text('{"path": "0.safetensors", "duration": 2.0}\n')
    with pytest.raises(DataError, match=r"duration is 2.00 s but .* has 0.72 s"):
        open_without_codec(jsonl)


def test_words_in_codes_are_not_said_to_be_none(encoded_set, data_set, capsys):
    jsonl = encoded_set(9, 25)
    assert main(["data", "check", str(jsonl)]) == 0
    assert "2 recordings, 0:00:02, words not counted in codes: no problems" in capsys.readouterr().out
    both = f"{jsonl},{data_set(2.0, name='sound')}"
    assert main(["data", "check", both]) == 0
    assert re.search(r"[1-9] words of the agent \(without 2 recordings of codes\)", capsys.readouterr().out)
    assert main(["data", "check", both, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pretokenized"] == 2


def test_the_check_command_reads_files_of_codes(encoded_set):
    jsonl = encoded_set(9, 25)
    report = check_data(str(jsonl))
    assert not report.findings and report.seconds == pytest.approx(34 * 0.08)
    codes = random_codes(25)
    codes[2, 2] = -7
    write_encoded(jsonl.parent / "1.safetensors", codes)
    (problem,) = check_data(str(jsonl)).problems
    assert problem.where.endswith("1.safetensors") and "stream 2, frame 2 holds -7" in problem.message
