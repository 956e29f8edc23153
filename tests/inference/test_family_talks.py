"""Other kinds of the family hear the user and answer."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from moshi.models import LMGen
from moshi.models.loaders import CheckpointInfo, get_conditioner_provider, get_moshi_lm
from moshi.run_inference import InferenceState, get_condition_tensors
from moshi.utils.compile import no_compile
from safetensors.torch import load_file, save_file

from ttt_moshi.cli.main import main
from ttt_moshi.config import ModelPaths
from ttt_moshi.inference import Conversation, Sampling, Slots
from ttt_moshi.inference.prompt import begin_beside, begin_with, make_prompt
from ttt_moshi.inference.speaker import open_base
from ttt_moshi.moshi.supported import REPOSITORY_KEYS

LUT = {"type": "lut", "lut": {"n_bins": 5, "dim": 8, "tokenizer": "noop", "possible_values": ["very_good", "very_bad"]}}
LOUD = Sampling(temp=2.0, temp_text=2.0)


@pytest.fixture
def repository(material, tmp_path):
    """A copy of the tiny base model to change: its folder, configuration and tensors."""
    folder = shutil.copytree(material.base_model, tmp_path / "model")
    return folder, json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def write(folder, config, tensors) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def talk(folder, seed: int = 0, loudness: float = 0.1) -> torch.Tensor:
    speaker = open_base(ModelPaths(hf_repo_id=str(folder)), "cpu", torch.float32)
    heard = loudness * torch.randn(10, 1920, generator=torch.Generator().manual_seed(seed))
    with Conversation(speaker, LOUD) as conversation:
        return torch.stack([conversation.hear(frame).tokens for frame in heard])


def test_personaplex_hears_the_user_and_says_what_its_half_says(material, repository):
    """Every depth step is there twice; as Moshi it is the base model."""
    folder, config, tensors = repository
    dep_q = config["dep_q"]
    for name in list(tensors):
        step = re.search(r"(linears|depformer_in|gating|in_projs|out_projs|depformer_emb)\.(\d+)\.", name)
        if step is not None and (name.startswith(("linears", "depformer"))):
            other = name.replace(step[0], f"{step[1]}.{int(step[2]) + dep_q}.", 1)
            tensors[other] = torch.randn_like(tensors[name])
    last = f"depformer_emb.{dep_q - 1}.weight"
    tensors[last] = torch.randn_like(tensors["depformer_emb.0.weight"])
    write(folder, {**config, "dep_q": 2 * dep_q, "model_type": "personaplex"}, tensors)
    assert torch.equal(talk(folder), talk(material.base_model))
    assert not torch.equal(talk(folder), talk(folder, seed=1)), "it hears nobody"


@pytest.fixture
def translator(repository):
    """A model that knows how well it should speak (Hibiki)."""
    folder, config, tensors = repository
    conditioners = {"conditioners": {"description": LUT}}
    torch.manual_seed(0)
    provider = get_conditioner_provider(config["dim"], "cpu", json.loads(json.dumps(conditioners)))
    weights = {f"condition_provider.{name}": torch.randn_like(t) for name, t in provider.state_dict().items()}
    fuser = {"sum": ["description"], "cross": [], "prepend": []}
    write(folder, {**config, **conditioners, "fuser": fuser, "model_type": "hibiki"}, {**tensors, **weights})
    return folder


def test_hibiki_speaks_under_its_condition(material, translator, capsys):
    folder = translator
    said = talk(folder)
    assert not torch.equal(said, talk(folder, seed=1))
    assert not torch.equal(said, talk(material.base_model)), "the condition does nothing"
    # The user chooses another, and what the model does not know is refused.
    generate = ["generate", "--checkpoint_dir", "base", "--hf_repo_id", str(folder), "--dtype", "float32"]
    soundfile.write(folder / "user.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 20 * 1920), 24_000)
    generate += ["--input", str(folder / "user.wav"), "--temp", "2"]
    generate += ["--extra_seconds", "0"]
    said = {}
    for name, options in (
        ("usual", []), ("same", ["--condition", "description=very_good"]), ("guided", ["--cfg", "3"]),
        ("bad", ["--condition", "description=very_bad"]), ("unguided", ["--cfg", "1"]),
    ):  # fmt: skip
        assert main([*generate, *options, "--out", str(folder / f"{name}.wav")]) == 0
        said[name] = soundfile.read(folder / f"{name}.wav")[0][:, 0].tolist()
    assert said["usual"] == said["same"] == said["unguided"]
    assert said["usual"] != said["bad"] and said["usual"] != said["guided"] != said["bad"]
    for condition, reason in (("mood=good", "no condition 'mood': it has description"), ("description=?", "not know")):
        assert main([*generate, "--out", str(folder / "new.wav"), "--condition", condition]) == 2
        assert reason in capsys.readouterr().err


def test_guidance_is_the_official_one_and_stays_with_its_conversation(translator):
    """Greedy, beside moshi's own generator with twice the rows; in a batch, and through a saved conversation."""
    speaker = replace(open_base(ModelPaths(hf_repo_id=str(translator)), "cpu", torch.float32), cfg=3.0)
    heard = 0.1 * torch.randn(12, 1920, generator=torch.Generator().manual_seed(0))
    conditions = get_condition_tensors("hibiki", speaker.model, 1, 3.0)
    generator = LMGen(speaker.model, use_sampling=False, cfg_coef=3.0, condition_tensors=conditions)
    with torch.no_grad(), no_compile(), speaker.mimi.streaming(1), generator.streaming(1):
        codes = [speaker.mimi.encode(frame[None, None]) for frame in heard]
        steps = [generator.step(frame) for frame in (codes[0], *codes)]
        expected = [tokens[0, :, 0].tolist() for tokens in steps if tokens is not None]
    said, greedy = [], Sampling(greedy=True)
    with Slots(speaker, 2, greedy, watched=True) as slots:
        slots.join(0, seed=0)
        slots.join(1, seed=0)
        for t, frame in enumerate(heard):
            if t == 6:  # it goes on in the other place, where somebody else was
                slots.restore(1, slots.snapshot(0))
                slots.join(0, seed=1)
            place = int(t >= 6)
            found = slots.tick({place: frame, 1 - place: heard[(5 * t) % 12]})
            said += [found[place].tokens.tolist()] if place in found else []
    assert said == expected
    with Conversation(replace(speaker, cfg=1.0), greedy) as plain:
        unguided = [reply.tokens.tolist() for frame in heard if (reply := plain.hear(frame)) is not None]
    assert unguided != expected, "guidance changes nothing"
    prompt = make_prompt(speaker, text="you are Alice")
    with Slots(speaker, 1, greedy) as slots:
        slots.restore(0, begin_beside(slots, "you are Alice"))
        slots.tick({0: heard[0]})
    first = [begin_with(replace(speaker, cfg=c), *prompt, greedy).tensors for c in (1.0, 3.0)]
    assert any(not torch.equal(first[0][name], first[1][name]) for name in first[0])


@pytest.fixture
def finisher(translator):
    """One that says that it has finished when the user's streams say that the input has ended."""
    tensors = load_file(translator / "model.safetensors")
    config = json.loads((translator / "config.json").read_text())
    mark = torch.randn(config["dim"], generator=torch.Generator().manual_seed(1))
    for stream in range(config["dep_q"], config["n_q"]):
        tensors[f"emb.{stream}.weight"][config["card"]] = 100 * mark
    tensors["text_linear.weight"][2] = 0.25 * mark
    for name in tensors:  # neither the condition nor what was read long ago, as the first frame's marks, may say so
        if name.startswith("condition_provider.") or (name.startswith("transformer.") and "out_proj" in name):
            tensors[name] *= 0.01
    write(translator, config, tensors)
    return translator, config


def test_hibiki_is_told_that_the_input_has_ended_as_by_the_official_command(finisher, capsys):
    """The same words, sounds and length, greedily; a conversation that is kept is told nothing."""
    folder, config = finisher
    user = np.random.default_rng(0).uniform(-0.1, 0.1, 8 * 1920).astype(np.float32)
    (folder / "in").mkdir()
    soundfile.write(folder / "in" / "one.wav", user, 24_000, subtype="FLOAT")
    generate = ["generate", "--checkpoint_dir", "base", "--hf_repo_id", str(folder), "--dtype", "float32", "--greedy"]
    assert main([*generate, "--extra_seconds", "2", "--input", str(folder / "in"), "--out", str(folder / "out")]) == 0
    assert "did not come to its end" not in capsys.readouterr().out
    tokens = load_file(folder / "out" / "one" / "tokens.safetensors")["tokens"]
    sound, _ = soundfile.read(folder / "out" / "one" / "output.wav", dtype="float32")

    official = get_moshi_lm(
        folder / "model.safetensors",
        {key: value for key, value in config.items() if key not in REPOSITORY_KEYS}, dtype=torch.float32,
    )  # fmt: skip
    official.text_emb.weight.data[2] = official.text_emb.weight.data[3]  # as its loader does
    speaker = open_base(ModelPaths(hf_repo_id=str(folder)), "cpu", torch.float32)
    info = CheckpointInfo(Path(), Path(), Path(), None, model_type="hibiki")
    with torch.no_grad(), no_compile():
        state = InferenceState(info, speaker.mimi, speaker.tokenizer, official, 1, 1.0, "cpu", use_sampling=False)
        ((text, pcm),) = state.run(torch.from_numpy(user)[None, None])
    assert tokens[0].tolist() == text.tolist() and 2 in text[:2] and int(text[-1]) == 2
    assert 2 not in text[3:-1], "once the first frame's marks are past (on some processors one frame later), not before"
    assert len(sound) == tokens.shape[1] * 1920 > len(user), "until it has finished, and no longer"
    np.testing.assert_allclose(sound, pcm[0].numpy().clip(-1, 1), atol=1e-4)

    told, one = [*generate, "--input", str(folder / "in" / "one.wav")], folder / "one.wav"
    assert main([*told, "--out", str(one)]) == 0
    both, _ = soundfile.read(one, dtype="float32")
    assert (both[:, 0] == sound).all() and not both[len(user) :, 1].any()
    assert main([*told, "--out", str(one), "--overwrite", "--extra_seconds", "0"]) == 0
    assert "one.wav: the translation did not come to its end" in capsys.readouterr().out
    assert main([*told, "--out", str(one), "--overwrite", "--save_session", str(folder / "session")]) == 0
    assert len(soundfile.read(one)[0]) == len(user)


@pytest.fixture
def listener(repository):
    """A model that writes what it hears: the folder, and its configuration for the official loader."""
    folder, config, _ = repository
    stt = {"audio_delay_seconds": 0.48, "audio_silence_prefix_seconds": 0.4}
    config |= {
        "model_type": "stt", "n_q": 8, "dep_q": 0, "delays": [0] * 9, "conditioners": {}, "stt_config": stt,
        "extra_heads_num_heads": 4, "extra_heads_dim": 6,
    }  # fmt: skip
    official = {key: value for key, value in config.items() if key not in REPOSITORY_KEYS}
    torch.manual_seed(0)
    write(folder, config, get_moshi_lm(None, json.loads(json.dumps(official)), dtype=torch.float32).state_dict())
    return folder, official


def test_speech_to_text_writes_what_the_official_generator_writes(listener):
    folder, official = listener
    speaker = open_base(ModelPaths(hf_repo_id=str(folder)), "cpu", torch.float32)
    heard = 0.1 * torch.randn(10, 1920, generator=torch.Generator().manual_seed(0))
    with Conversation(speaker, Sampling(greedy=True)) as conversation:
        replies = [conversation.hear(frame) for frame in heard]
    generator = LMGen(get_moshi_lm(folder / "model.safetensors", official, dtype=torch.float32), use_sampling=False)
    with torch.no_grad(), no_compile(), speaker.mimi.streaming(1), generator.streaming(1):
        codes = [speaker.mimi.encode(frame[None, None]) for frame in heard]
        expected = [generator.step(frame) for frame in (codes[0], *codes)][1:]
    assert [reply.tokens.tolist() for reply in replies] == [tokens[0, :, 0].tolist() for tokens in expected]
    assert len({tuple(reply.tokens.tolist()) for reply in replies}) > 1
    assert not any(reply.samples.any() for reply in replies), "it says nothing"


def test_speech_to_text_reads_one_voice_and_its_words_later(listener, material, tmp_path):
    """The codes that it is trained on, beside those of a Moshi: the agent's side, and the text six frames later."""
    folder, _ = listener
    found = []
    for name, model in (("moshi", material.base_model), ("stt", folder)):
        out = tmp_path / name
        options = ["--hf_repo_id", str(model), "--out", str(out), "--device", "cpu"]
        assert main(["data", "encode", str(material.eval_data), *options]) == 0
        files = [json.loads(line)["path"] for line in (out / "data.jsonl").read_text().splitlines()]
        found.append([load_file(out / file)["codes"] for file in files])
    for moshi, stt in zip(*found, strict=True):
        assert stt.shape == (9, moshi.shape[1])
        assert torch.equal(stt[1:], moshi[1:9])
        later, before = stt[0, 6:], moshi[0, :-6]
        assert torch.equal(later[1:], before[1:]) and bool((before > 3).any())
        assert bool((stt[0, :5] == 3).all())


def test_speech_to_text_is_trained_evaluated_and_writes(listener, material, recording, tmp_path, capsys):
    folder, _ = listener
    train = ["train", "--run_dir", str(tmp_path / "run"), "--moshi_paths.hf_repo_id", str(folder), "--do_eval", "true",
             "--data.train_data", str(material.train_data), "--data.eval_data", str(material.eval_data),
             "--duration_sec", "4", "--max_steps", "2", "--log_freq", "1", "--param_dtype", "float32",
             "--lora.enable", "false", "--ttt.enable", "true", "--ttt.layers", "all",
             "--checkpoint.keep_best", "1"]  # fmt: skip
    assert main([*train, "--checkpoint.keep_metric", "eval.audio"]) == 2, "it has none"
    assert "does not measure 'eval.audio'" in capsys.readouterr().err
    assert main([*train, "--checkpoint.keep_metric", "eval.text"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert len(lines) == 3 and not any("audio" in line or "semantic" in line for line in lines)
    for line in (tmp_path / "run" / "metrics.train.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["loss"] == record["text_loss"] > 0 and "audio_loss" not in record
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint_*")
    where = ["--checkpoint_dir", str(checkpoint), "--device", "cpu"]
    evaluate = ["eval", *where, "--out", str(tmp_path / "evaluation"), "--tasks", "perplexity,dialogue"]
    assert main([*evaluate, "--data", str(material.eval_data), "--max_items", "2"]) == 1, "one of the two cannot run"
    tasks = json.loads((tmp_path / "evaluation" / "results.json").read_text())["tasks"]
    perplexity, dialogue = tasks["perplexity"], tasks["dialogue"]
    assert perplexity["value"] == perplexity["components"]["text"]["ppl"] > 1
    assert set(perplexity["components"]) == {"text", "text_words", "text_pad", "text_epad"}
    assert "text token" in perplexity["means"] and "writes what it hears" in dialogue["reason"]

    talk = ["generate", *where, "--input", str(recording), "--channel", "left", "--temp_text", "2"]
    assert main([*talk, "--out", str(tmp_path / "heard.wav")]) == 0
    (user, rate), (sound, _) = soundfile.read(recording), soundfile.read(tmp_path / "heard.wav")
    assert sound.ndim == 1 and abs(sound[: len(user)] - user[:, 0]).max() < 1e-3
    assert len(sound) == len(user) + round((0.48 + 1.0) * rate), "the last words need that long to be written"
    assert main([*talk, "--out", str(tmp_path / "other.wav"), "--prompt_text", "You are Ann."]) == 2
    assert "takes no prompt" in capsys.readouterr().err


def test_speech_to_text_says_when_words_were_heard(listener, recording, tmp_path):
    """Not when they were written; of many recordings, whose tokens are there to compare."""
    folder, _ = listener
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "one.wav", soundfile.read(recording)[0][:48_000, 0], 24_000)
    talk = ["generate", "--checkpoint_dir", "base", "--hf_repo_id", str(folder), "--dtype", "float32"]
    assert main([*talk, "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--temp_text", "2"]) == 0
    text = load_file(tmp_path / "out" / "one" / "tokens.safetensors")["tokens"][0]
    assert len(text) == 25 + 19, "two seconds, and those in which the last words are written"
    frames = (~torch.isin(text, torch.tensor([0, 3]))).nonzero()[:, 0]
    heard = [frame for frame in frames.tolist() if frame >= 6]  # before that nothing had been heard
    words = json.loads((tmp_path / "out" / "one" / "output.json").read_text())["alignments"]
    assert words[-1][1][1] == pytest.approx((heard[-1] + 1 - 6) * 0.08, abs=1e-3)
