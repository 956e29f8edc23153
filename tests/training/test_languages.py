"""Another language, and the user's stream: from text to training, its resumption, its export, and generated text."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from moshi.models.loaders import get_moshi_lm
from moshi.utils.compile import no_compile
from safetensors.torch import load_file

from ttt_moshi.cli.main import main
from ttt_moshi.config import ModelPaths
from ttt_moshi.data import Codec, Corpus, TextStyle
from ttt_moshi.evaluation.subject import from_checkpoint
from ttt_moshi.inference import words
from ttt_moshi.moshi import load_trained, resolve_model
from ttt_moshi.moshi.supported import REPOSITORY_KEYS

TEXTS = {
    "japanese": "おはようございます。角のパン屋です。七時に開いて六時に閉まります。",
    "cyrillic": "доброе утро это булочная на углу мы открываемся в семь и закрываемся в шесть",
}


@pytest.fixture(autouse=True)
def uncompiled():
    with no_compile():
        yield


def write_voice(path: Path, seconds: float, channels: int = 1) -> None:
    """Tone bursts of a second with pauses, so that words find a place."""
    t = np.arange(round(seconds * 16000)) / 16000
    tone = 0.3 * np.sin(2 * np.pi * 330 * t) * (t % 1.3 < 1.0) + np.random.default_rng(0).normal(0, 1e-3, len(t))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([np.roll(tone, 9000 * channel) for channel in range(channels)], axis=1), 16000)


def train_tokenizer(text: str, path: Path) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 20), model_writer=model, vocab_size=300, model_type="bpe", unk_id=0, bos_id=1,
        eos_id=2, pad_id=3, byte_fallback=True, hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def train(run_dir: Path, material, data: Path, steps: int, **keys: object) -> Path:
    """Trains in this process; returns the last checkpoint."""
    given = {
        "run_dir": run_dir, "moshi_paths.hf_repo_id": material.base_model, "data.train_data": data, "max_steps": steps,
        "duration_sec": 2.4, "optim.lr": 1e-3, "param_dtype": "float32", "gradient_checkpointing": False,
        "ckpt_freq": 2, "ttt.enable": True, "ttt.layers": "1", "ttt.mini_batch_size": 8, **keys,
    }  # fmt: skip
    argv = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    assert main(["train", *argv]) == 0
    return run_dir / "checkpoints" / f"checkpoint_{steps:06}"


def talk(checkpoint: Path, recording: Path, out: Path) -> int:
    """Exit status of `generate`."""
    words = ["--checkpoint_dir", checkpoint, "--device", "cpu", "--input", recording, "--out", out]
    return main(["generate", *map(str, words)])


def exported(checkpoint: Path) -> dict[str, torch.Tensor]:
    (path,) = (checkpoint / "consolidated").glob("*.safetensors")
    return load_file(path)


def resume_from_two(last: Path, run_dir: Path, material, data: Path, **keys: object) -> Path:
    """Goes on in a copy of the run, as if it had been killed before its last save."""
    shutil.copytree(last.parents[1], run_dir)
    shutil.rmtree(run_dir / "checkpoints" / last.name)
    return train(run_dir, material, data, 4, **keys, **{"checkpoint.resume": True})


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("language", list(TEXTS))
def test_from_text_to_generated_text_and_back(tmp_path, tiny_material, language):
    text, unspaced = TEXTS[language], language == "japanese"
    write_voice(tmp_path / "calls" / "a.wav", 9.0)
    (tmp_path / "calls" / "a.txt").write_text(text)
    assert main(["data", "prepare", str(tmp_path / "calls"), "--out", str(tmp_path / "data")]) == 0
    tokenizer = train_tokenizer(text, tmp_path / "own.model")
    data = tmp_path / "data" / "data.jsonl"

    # What the model is given says the text.
    info = resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)))
    style = TextStyle(no_whitespace_before_word=unspaced)
    codec = Codec(info.get_mimi("cpu"), info.mimi_config)
    corpus = Corpus(str(data), codec, tokenizer, 9.0, style=style)
    row = corpus.read(corpus.clips(0)).codes[0, 0].tolist()
    pieces = ["" if token in (-1, style.pad, style.epad) else tokenizer.id_to_piece(token) for token in row]
    assert ("" if unspaced else " ").join(word.text for word in words(pieces, 12.5)) == text

    keys = {
        "moshi_paths.tokenizer_path": tmp_path / "own.model",
        "data.new_text_embeddings": True,
        "data.no_whitespace_before_word": unspaced,
    }
    checkpoint = train(tmp_path / "run", tiny_material, data, 4 if unspaced else 2, **keys)
    if unspaced:
        resumed = resume_from_two(checkpoint, tmp_path / "resumed", tiny_material, data, **keys)
        assert same(exported(resumed), exported(checkpoint))
    tensors = exported(checkpoint)
    assert {name for name in tensors if ".ttt." not in name} == {
        "text_emb.weight", "text_linear.weight", "depformer_text_emb.weight",
    }  # fmt: skip
    model = load_trained(checkpoint, dtype=torch.float32)
    assert torch.equal(model.text_linear.weight, tensors["text_linear.weight"])
    assert model.text_card == tokenizer.get_piece_size()
    assert from_checkpoint(checkpoint, "cpu", torch.float32).style == style

    said = tmp_path / "said.wav"
    assert talk(checkpoint, tmp_path / "calls" / "a.wav", said) == 0
    heard = [word for word, _, _ in json.loads(said.with_suffix(".json").read_text())["alignments"]]
    assert heard and not any("<0x" in word or "▁" in word for word in heard)


def test_the_user_s_stream_is_trained_resumed_and_exported(tmp_path, tiny_material):
    write_voice(tmp_path / "data" / "a.wav", 6.0, channels=2)
    line = {"path": "a.wav", "duration": 6.0}
    data = tmp_path / "data" / "data.jsonl"
    data.write_text(json.dumps(line))
    keys = {"data.train_user_stream": True, "full_finetuning": True, "save_adapters": False, "do_eval": True}
    keys |= {"data.eval_data": data, "ttt.enable": False}
    checkpoint = train(tmp_path / "run", tiny_material, data, 4, **keys)
    resumed = resume_from_two(checkpoint, tmp_path / "resumed", tiny_material, data, **keys)
    assert same(exported(resumed), exported(checkpoint))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.train.jsonl").read_text().splitlines()]
    names = {
        f"{whose}{name}" for whose in ("", "user_") for name in ("semantic", *(f"acoustic_{k}" for k in range(2, 9)))
    }
    assert names <= records[-1]["nll"].keys()
    measured = [json.loads(line) for line in (tmp_path / "run" / "metrics.eval.jsonl").read_text().splitlines()]
    assert not any(name.startswith("user") or name == "acoustic_9" for name in measured[-1]["nll"])

    config = json.loads((checkpoint / "consolidated" / "config.json").read_text())
    assert config["dep_q"] == config["n_q"] == 16
    geometry = {key: value for key, value in config.items() if key not in {*REPOSITORY_KEYS, "lora"}}
    tensors = exported(checkpoint)
    official = get_moshi_lm(checkpoint / "consolidated" / "consolidated.safetensors", geometry, dtype=torch.float32)
    assert official.dep_q == 16
    assert not torch.equal(tensors["linears.8.weight"], tensors["linears.0.weight"])  # begun as copies, trained apart
    # Whoever talks to it has a user: its own half is what the official model says of Moshi.
    model = load_trained(checkpoint, dtype=torch.float32)
    codes = torch.randint(0, 30, (1, 17, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, own = official.eval()(codes), model(codes)
    assert model.dep_q == 8
    torch.testing.assert_close(own.logits[own.mask], whole.logits[:, :8][whole.mask[:, :8]], atol=1e-5, rtol=1e-5)
    said = tmp_path / "said.wav"
    assert talk(checkpoint, tmp_path / "data" / "a.wav", said) == 0 and said.stat().st_size > 1000


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"data.train_user_stream": True}, "needs `full_finetuning: true`"),
        ({"data.new_text_embeddings": True, "moshi_paths.tokenizer_path": "nowhere.model"}, "no file"),
        ({"data.no_whitespace_before_word": "perhaps"}, "no_whitespace_before_word"),
    ],
)
def test_bad_values_touch_nothing(tmp_path, tiny_material, capsys, keys, reason):
    given = {"run_dir": tmp_path / "run", "moshi_paths.hf_repo_id": tiny_material.base_model, "ttt.enable": True}
    given |= {"data.train_data": tiny_material.train_data, **keys}
    assert main(["train", *(word for key, value in given.items() for word in (f"--{key}", str(value)))]) == 2
    told = capsys.readouterr().err
    assert reason in told and not (tmp_path / "run").exists()
