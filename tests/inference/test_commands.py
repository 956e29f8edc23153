"""`generate` and `serve` as a user types them: what they write, and what they refuse before anything is touched."""

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from ttt_moshi.cli.main import main

PADDING = torch.tensor([0, 3])
"""the ids of EPAD and PAD"""


def generate(trained, recording, out, *options) -> int:
    return main(["generate", "--checkpoint_dir", str(trained), "--input", str(recording), "--out", str(out), *options])


def test_the_conversation_is_training_data(trained, recording, tmp_path, capsys):
    """Stereo sound with the user untouched on the right, words beside it, and `data check` finds nothing wrong."""
    short, rate = soundfile.read(recording)
    soundfile.write(tmp_path / "user.wav", short[: 5 * rate], rate, subtype="FLOAT")
    assert generate(trained, tmp_path / "user.wav", tmp_path / "talk.wav") == 0
    talk, out_rate = soundfile.read(tmp_path / "talk.wav")
    assert out_rate == 24_000 and talk.shape == (5 * 24_000, 2)
    if rate == 24_000:
        assert abs(talk[:, 1] - short[: 5 * rate, 1]).max() < 2**-15
    for text, (start, end), speaker in json.loads((tmp_path / "talk.json").read_text())["alignments"]:
        assert text and 0 <= start < end <= 5.08 and speaker == "SPEAKER_MAIN"
    (tmp_path / "data.jsonl").write_text(json.dumps({"path": "talk.wav", "duration": 5.0}))
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "data.jsonl")]) == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--temp", "0"], "--greedy"),
        (["--top_k", "-1"], "--top_k must be greater"),
        (["--temp", "nan"], "--temp must be greater"),
        (["--temp_text", "inf"], "--temp_text must be greater"),
        (["--top_k_text", "0"], "--top_k_text must be greater"),
        (["--pad_bias", "nan"], "--pad_bias must be between"),
        (["--pad_bias", "1e9"], "--pad_bias must be between"),
        (["--say", "hello"], "and not both"),
        (["--resume_session", "missing", "--no_greeting"], "not both"),
        (["--temp", "warm"], "invalid float value: 'warm'"),
        (["--tempo", "1"], "did you mean `--temp`"),
        (["--seed", "-1"], "--seed must be between"),
        (["--seed", str(2**63)], "--seed must be between"),
        (["--seed", "1.5"], "invalid int value"),
        (["--device", "cuda:7"], "GPU"),
        *((["--device", name], "auto, cpu, cuda or cuda:N") for name in ("tpu", "gpu", "", "CPU", "cuda:x", "cuda:-1")),
        (["--dtype", "float16"], "invalid choice"),
        (["--extra_seconds", "-1"], "--extra_seconds must be between"),
        (["--extra_seconds", "nan"], "--extra_seconds must be between"),
        (["--channel", "middle"], "invalid choice"),
        (["--slots", "0"], "--slots must be at least 1"),
        (["--resume_session", "missing"], "no saved conversation at missing"),
        (["--out", "."], ".wav or .flac"),
        (["--save_session", "."], "is a folder"),
        (["--out", "talk.mp3"], ".wav or .flac"),
        (["--out", "nowhere/talk.wav"], "make it first"),
        (["--save_session", "nowhere/session"], "make it first"),
        (["--input", "missing.wav"], "no recording at missing.wav"),
        (["--input", ""], "--input: the path is empty"),
        (["--checkpoint_dir", "base"], "which model?"),
        (["--checkpoint_dir", "base", "--hf_repo_id", "./missing"], "missing"),
        (["--hf_repo_id", ""], "--hf_repo_id is empty"),
        (["--sink", "-1"], "--sink counts frames"),
        (["--sink", "32"], "sink of 32 frames does not fit into a window of 32"),
        (["--prompt_text", ""], "--prompt_text is empty"),
        (["--prompt_voice", "missing.wav"], "no recording at missing.wav"),
        (["--checkpoint_dir", "missing"], "no folder at missing"),
        (["--hf_repo_id", "./missing"], "missing"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_in_one_line(trained, recording, tmp_path, monkeypatch, capsys, options, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert generate(trained, recording, "talk.wav", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and complaint in error
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def short(recording, tmp_path):
    """Two seconds of a dialogue in which both speak."""
    sound, rate = soundfile.read(recording)
    begin = max(
        range(0, len(sound) - 2 * rate, rate // 4), key=lambda at: abs(sound[at : at + 2 * rate]).min(axis=1).sum()
    )
    path = tmp_path / "short.wav"
    soundfile.write(path, sound[begin : begin + 2 * rate], rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize("existing", ["talk.wav", "talk.json", "session"])
def test_nothing_is_replaced_unasked(trained, short, tmp_path, capsys, existing):
    (tmp_path / existing).write_text("mine")
    arguments = [trained, short, tmp_path / "talk.wav", "--save_session", str(tmp_path / "session")]
    assert generate(*arguments) == 2
    error = capsys.readouterr().err
    assert existing in error and "--overwrite" in error
    assert (tmp_path / existing).read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
    assert generate(*arguments, "--overwrite") == 0
    assert (tmp_path / existing).read_bytes() != b"mine"


def test_the_input_is_never_replaced(trained, short, capsys):
    before = short.read_bytes()
    assert generate(trained, short, short, "--overwrite") == 2
    assert "is --input and --out too" in capsys.readouterr().err and short.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--save_session", "talk.json"], "the words beside --out and --save_session"),
        (["--save_session", "./talk.wav"], "--out and --save_session"),
        (["--save_session", "short.wav"], "--input and --save_session"),
        (["--prompt_voice", "talk.wav"], "--prompt_voice and --out"),
        (["--resume_session", "talk.json"], "--resume_session and the words beside --out"),
    ],
)
def test_no_file_of_a_conversation_replaces_another(trained, short, tmp_path, monkeypatch, capsys, options, named):
    monkeypatch.chdir(tmp_path)
    if options[0] != "--save_session":
        (tmp_path / options[1]).write_bytes(short.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert generate(trained, short, Path("talk.wav"), *options, "--overwrite") == 2
    assert f"is {named} too" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_conversation_goes_on_in_its_own_file(trained, short, tmp_path):
    session = str(tmp_path / "session")
    assert generate(trained, short, tmp_path / "one.wav", "--save_session", session) == 0
    before = Path(session).read_bytes()
    going_on = ["--resume_session", session, "--save_session", session, "--overwrite"]
    assert generate(trained, short, tmp_path / "two.wav", *going_on) == 0
    assert Path(session).read_bytes() != before


def test_a_question_gets_time_for_its_answer(trained, short, tmp_path):
    assert generate(trained, short, tmp_path / "plain.wav") == 0
    assert generate(trained, short, tmp_path / "more.wav", "--extra_seconds", "1.5") == 0
    plain, more = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("plain", "more"))
    assert len(plain) == 48_000 and len(more) == 84_000
    assert (more[:48_000] == plain).all() and not more[48_000:, 1].any()


def test_a_voice_on_the_wrong_channel_is_noticed(trained, short, tmp_path, capsys):
    sound, rate = soundfile.read(short)
    swapped = sound[:, ::-1].copy()
    swapped[:, 1] = 0.0
    soundfile.write(tmp_path / "swapped.wav", swapped, rate, subtype="FLOAT")
    assert generate(trained, tmp_path / "swapped.wav", tmp_path / "talk.wav") == 0
    assert "the right channel is silent" in (said := capsys.readouterr().out) and "--channel left" in said
    assert generate(trained, tmp_path / "swapped.wav", tmp_path / "left.wav", "--channel", "left") == 0
    assert generate(trained, short, tmp_path / "right.wav") == 0
    assert "silent" not in capsys.readouterr().out
    assert (tmp_path / "left.wav").read_bytes() == (tmp_path / "right.wav").read_bytes()


@pytest.mark.parametrize(
    "options", ["--seed 3", "--greedy", "--temp 3", "--top_k 1", "--temp_text 9", "--top_k_text 1", "--pad_bias -50"]
)
def test_every_option_of_the_draws_acts(trained, short, tmp_path, options):
    common = ["--temp_text", "2", "--temp", "2"]  # the tiny model is sure of itself
    assert generate(trained, short, tmp_path / "a.wav", *common) == 0
    draws = [] if options == "--greedy" else common  # which draws nothing, and refuses what would change a draw
    assert generate(trained, short, tmp_path / "b.wav", *draws, *options.split()) == 0
    assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "b.wav").read_bytes() or (
        (tmp_path / "a.json").read_text() != (tmp_path / "b.json").read_text()
    )


def test_a_sink_acts_and_is_refused_by_the_server_too(trained, short, tmp_path, capsys):
    common = ["--temp", "2", "--temp_text", "2", "--extra_seconds", "1.5"]
    for name, options in (("plain", []), ("sink", ["--sink", "4"])):
        assert generate(trained, short, tmp_path / f"{name}.wav", *common, *options) == 0
    plain, sink = (soundfile.read(tmp_path / f"{name}.wav")[0][:, 0] for name in ("plain", "sink"))
    inside = 28 * 1920  # the window has not filled up yet
    assert (plain[:inside] == sink[:inside]).all() and (plain != sink).any()
    capsys.readouterr()
    assert main(["serve", "--checkpoint_dir", str(trained), "--port", "0", "--sink", "-1"]) == 2
    assert "--sink counts frames" in capsys.readouterr().err


def said_words(path) -> list:
    return json.loads(path.with_suffix(".json").read_text())["alignments"]


def test_readiness_to_speak_acts(trained, short, tmp_path):
    """From no piece at all to one in every frame. At 20 padding is drawn in about half of the frames."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copy(short, inputs / "short.wav")
    counts = []
    for bias in ("1000", "20", "-1000"):
        out = tmp_path / f"talk{bias}"
        assert generate(trained, inputs, out, "--temp_text", "9", "--pad_bias", bias) == 0
        text = load_file(out / "short" / "tokens.safetensors")["tokens"][0]
        counts.append(int((~torch.isin(text, PADDING)).sum()))
    assert counts[0] == 0 < counts[1] < counts[2]
    assert counts[2] == len(text)


@pytest.mark.parametrize("prompt", [[], ["--prompt_text", "yes"]], ids=str)
def test_no_word_comes_before_the_user_s_first_sound(trained, short, tmp_path, prompt):
    sound, rate = soundfile.read(short)
    sound[: rate + rate // 2] = 0.0
    alone = tmp_path / "inputs"
    alone.mkdir()
    soundfile.write(alone / "late.wav", sound, rate, subtype="FLOAT")
    starts = {}
    for name, options in (("greets", []), ("waits", ["--no_greeting"])):
        out = tmp_path / f"{name}.wav"
        options = [*options, *prompt, "--temp_text", "9", "--pad_bias", "-1000", "--extra_seconds", "1"]
        assert generate(trained, alone / "late.wav", out, *options) == 0
        if not prompt and name == "waits":  # of many recordings likewise
            assert generate(trained, alone, tmp_path / "many", *options) == 0
            assert said_words(tmp_path / "many" / "late" / "output.json")[0][1][0] > 1.4
        starts[name] = min(start for _, (start, _), _ in said_words(out))
    assert starts["greets"] < 0.3 and 1.4 < starts["waits"] < 2.1


def test_the_user_may_say_it_in_text(trained, tmp_path, capsys):
    pytest.importorskip("espeakng_loader")
    out, other = tmp_path / "talk.wav", tmp_path / "other.wav"
    say = ["generate", "--checkpoint_dir", str(trained), "--say"]
    assert main([*say, "What is your name?", "--out", str(out), "--extra_seconds", "1"]) == 0
    assert main([*say, "Good night.", "--out", str(other), "--extra_seconds", "1"]) == 0
    (first, rate), (second, _) = soundfile.read(out), soundfile.read(other)
    assert rate == 24_000 and abs(first[:rate, 1]).max() > 0.05 and not first[-rate:, 1].any()
    assert len(first) != len(second)
    capsys.readouterr()
    for arguments in ([*say, " ", "--out", str(out), "--overwrite"], ["generate", *say[1:3], "--out", str(out)]):
        assert main(arguments) == 2
        assert (error := capsys.readouterr().err).count("\n") == 1 and ("is empty" in error or "--say" in error)


def test_many_recordings_are_answered_one_by_one_or_together(trained, short, tmp_path, capsys):
    """A conversation does not depend on the batch, a bad file does not stop the others, and a second run goes on."""
    sound, rate = soundfile.read(short)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for index, length in enumerate((1.0, 0.5, 1.5)):
        soundfile.write(inputs / f"user{index}.wav", sound[: round(length * rate), 1], rate, subtype="FLOAT")
    assert generate(trained, inputs, tmp_path / "one", "--slots", "1") == 0
    (inputs / "bad.wav").write_text("no audio")
    assert generate(trained, inputs, tmp_path / "all", "--slots", "3") == 1
    assert "bad: " in capsys.readouterr().out
    tied = 0
    for index, samples in enumerate((24_000, 12_000, 36_000)):
        together, alone = (tmp_path / run / f"user{index}" for run in ("all", "one"))
        tokens, same = (load_file(folder / "tokens.safetensors")["tokens"] for folder in (together, alone))
        (a, a_rate), (b, _) = (soundfile.read(folder / "output.wav") for folder in (together, alone))
        assert a_rate == 24_000 and len(a) == len(b) == samples and tokens.shape == same.shape
        assert (together / "input.wav").read_bytes() == (alone / "input.wav").read_bytes()
        if torch.equal(tokens, same):
            assert abs(a - b).max() <= 2 / 2**15
            assert (together / "output.json").read_text() == (alone / "output.json").read_text()
        else:  # a code of the user on the edge between two, which a product of another shape rounds to the other side
            tied += 1
            assert torch.equal(tokens[:, :4], same[:, :4])
    assert tied <= 1
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["user0", "user1", "user2"]
    (inputs / "bad.wav").unlink()
    (tmp_path / "all" / "user1" / "output.json").unlink()
    kept = (tmp_path / "all" / "user0" / "output.wav").stat().st_mtime_ns
    lines = [json.dumps({"path": f"inputs/user{index}.wav", "duration": 1}) for index in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines) + "\n\n")
    assert generate(trained, tmp_path / "list.jsonl", tmp_path / "all") == 0
    assert "2 of 3 are there already" in capsys.readouterr().out
    assert (tmp_path / "all" / "user1" / "output.json").exists()
    assert (tmp_path / "all" / "user0" / "output.wav").stat().st_mtime_ns == kept
    capsys.readouterr()
    assert generate(trained, tmp_path / "list.jsonl", tmp_path / "all", "--seed", "9") == 2
    assert "user0 holds another conversation (differs in seed)" in capsys.readouterr().err
    assert generate(trained, tmp_path / "list.jsonl", tmp_path / "all", "--dtype", "bfloat16") == 2
    assert "user0 holds another conversation (differs in dtype)" in capsys.readouterr().err
    made_by = tmp_path / "all" / "user0" / "made_by.json"
    facts = json.loads(made_by.read_text())
    assert facts.pop("dtype") == "float32"
    made_by.write_text(json.dumps(facts))
    assert generate(trained, tmp_path / "list.jsonl", tmp_path / "all") == 2
    assert "differs in dtype; of an earlier version, which did not write down its dtype" in capsys.readouterr().err
    assert (tmp_path / "all" / "user0" / "output.wav").stat().st_mtime_ns == kept


def test_what_another_process_is_making_is_left_to_it(trained, short, tmp_path, capsys):
    inputs, out = tmp_path / "inputs", tmp_path / "out"
    for folder in (inputs, out / "user0"):
        folder.mkdir(parents=True)
    for index in range(2):
        shutil.copy(short, inputs / f"user{index}.wav")
    theirs = out / "user0" / ".0123456789abcdef0123456789abcdef.partial"
    theirs.write_text("half of it")
    with (out / "user0" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert generate(trained, inputs, out) == 1
    assert f"user0: another process is making {out / 'user0'}" in capsys.readouterr().out
    assert {path.name for path in (out / "user0").iterdir()} == {".lock", theirs.name}
    assert (out / "user1" / "output.json").exists() and not (out / "user1" / ".lock").exists()
    assert generate(trained, inputs, out) == 0  # the lock has ended with its holder, its file and what it left remained
    assert {p.name for p in (out / "user0").iterdir()} == {p.name for p in (out / "user1").iterdir()}


def test_two_processes_share_the_work_of_one_folder(trained, short, tmp_path):
    sound, rate = soundfile.read(short)
    (tmp_path / "inputs").mkdir()
    for index in range(4):
        soundfile.write(tmp_path / "inputs" / f"user{index}.wav", sound[: rate // (index + 1)], rate, subtype="FLOAT")
    assert generate(trained, tmp_path / "inputs", tmp_path / "alone", "--slots", "1") == 0
    command = [sys.executable, "-m", "ttt_moshi", "generate", "--checkpoint_dir", trained, "--slots", "1"]
    command += ["--input", tmp_path / "inputs", "--out", tmp_path / "shared"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    for process in both:
        said, _ = process.communicate()
        assert process.returncode in (0, 1) and "Traceback" not in said, said
        assert process.returncode == 0 or "another process is making" in said, said
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    found = {path.relative_to(alone): path.read_bytes() for path in alone.rglob("*") if path.is_file()}
    assert {path.relative_to(shared): path.read_bytes() for path in shared.rglob("*") if path.is_file()} == found


def test_one_entry_of_a_folder_that_is_no_file_does_not_stop_the_others(trained, short, tmp_path, capsys):
    inputs = tmp_path / "inputs"
    (inputs / "folder.wav").mkdir(parents=True)
    (inputs / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    shutil.copy(short, inputs / "user.wav")
    assert generate(trained, inputs, tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "folder: " in said and "gone: " in said and "1 conversations written, 2 failed" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["user"]


@pytest.mark.parametrize("name", ["...wav", "..wav"])
def test_no_conversation_is_written_beside_its_folder(trained, short, tmp_path, capsys, name):
    (tmp_path / "inputs").mkdir()
    shutil.copy(short, tmp_path / "inputs" / name)
    assert generate(trained, tmp_path / "inputs", tmp_path / "deep" / "out") == 2
    assert name in capsys.readouterr().err and not (tmp_path / "deep").exists()


def test_a_list_may_begin_with_a_mark_and_names_hold_other_ends_of_lines(trained, short, tmp_path):
    shutil.copy(short, tmp_path / "a\u2028b.wav")
    (tmp_path / "list.jsonl").write_text('{"path": "a\u2028b.wav"}\n', encoding="utf-8-sig")
    assert generate(trained, tmp_path / "list.jsonl", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a\u2028b" / "output.json").exists()


@pytest.mark.parametrize(
    ("lines", "options", "complaint"),
    [
        (["no json"], [], "line 1 is not an object"),
        (['{"path": "short.wav"}', '{"file": 1}'], [], "line 2 is not an object"),
        ([], [], "names no recordings"),
        (['{"path": "gone.wav"}'], [], "no recording at"),
        (['{"path": "short.wav"}', '{"path": "./short.wav"}'], [], "rename one of them"),
        (['{"path": "short.wav"}'], ["--save_session", "session"], "is for one recording"),
        (['{"path": "short.wav"}'], ["--out", "short.wav"], "--out is a folder"),
    ],
    ids=str,
)
def test_lists_that_cannot_work_are_refused(trained, short, tmp_path, monkeypatch, capsys, lines, options, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    assert generate(trained, "list.jsonl", "out", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and complaint in error
    assert not (tmp_path / "out").exists()


def test_other_models_than_checkpoints_talk(trained, material, short, tmp_path, capsys):
    """The base model as it is, and an exported folder; the latter says the same as the checkpoint it comes from."""
    assert generate("base", short, tmp_path / "base.wav", "--hf_repo_id", str(material.base_model)) == 0
    assert main(["ckpt", "export", str(trained), str(tmp_path / "exported")]) == 0
    capsys.readouterr()
    assert generate(tmp_path / "exported", short, tmp_path / "exported.wav", "--dtype", "float32") == 0
    assert "cannot be verified" in capsys.readouterr().out
    assert generate(trained, short, tmp_path / "trained.wav") == 0
    assert (tmp_path / "exported.wav").read_bytes() == (tmp_path / "trained.wav").read_bytes()
    assert generate(trained, short, tmp_path / "half.wav", "--dtype", "bfloat16") == 0
    assert (tmp_path / "half.wav").read_bytes() != (tmp_path / "trained.wav").read_bytes()


def test_a_prompt_acts(trained, short, tmp_path, capsys):
    options = ["--temp_text", "2", "--temp", "2", "--overwrite"]
    said = set()
    for prompt in ([], ["--prompt_text", "yes"], ["--prompt_voice", str(short)], ["--prompt_text", "no"]):
        assert generate(trained, short, tmp_path / "talk.wav", *options, *prompt) == 0
        said.add((tmp_path / "talk.wav").read_bytes())
    assert len(said) == 4
    capsys.readouterr()
    assert generate(trained, short, tmp_path / "talk.wav", *options, "--prompt_text", "word " * 40) == 2
    assert "attention window" in capsys.readouterr().err
    for session in (["--save_session"], ["--prompt_text", "no", "--resume_session"]):
        status = generate(trained, short, tmp_path / "talk.wav", *options, *session, str(tmp_path / "session"))
    assert status == 2 and "not both" in capsys.readouterr().err


def test_another_tokenizer_than_the_model_s_is_refused(trained, material, short, tmp_path, capsys):
    from ttt_moshi.synthetic.tokenizer import train_tokenizer

    base = shutil.copytree(material.base_model, tmp_path / "base")
    words = [f"w{a}{b}" for a in "abcdefghijkl" for b in "abcdefghijkl"]
    train_tokenizer(words, base / json.loads((base / "config.json").read_text())["tokenizer_name"], 110)
    assert generate(trained, short, tmp_path / "talk.wav", "--hf_repo_id", str(base)) == 2
    assert "has 110 pieces and the model 160 text tokens" in capsys.readouterr().err


def test_a_corrupt_checkpoint_does_not_talk(trained, short, tmp_path, capsys):
    """Unless it is told not to look."""
    copy = tmp_path / "checkpoint_000002"
    shutil.copytree(trained / "checkpoints" / "checkpoint_000002", copy)
    shard = next((copy / "consolidated").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert generate(copy, short, tmp_path / "talk.wav") == 2
    assert (
        "the checkpoint is corrupt and is not used" in capsys.readouterr().err and not (tmp_path / "talk.wav").exists()
    )
    assert generate(copy, short, tmp_path / "talk.wav", "--no_ttt_verify") == 0


def test_a_recording_that_is_damaged_once_it_was_answered_does_not_stop_the_others(trained, short, tmp_path, capsys):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copy(short, inputs / "a.wav")
    assert generate(trained, inputs, tmp_path / "out") == 0
    (inputs / "a.wav").write_bytes(b"no sound")
    shutil.copy(short, inputs / "b.wav")
    assert generate(trained, inputs, tmp_path / "out") == 1
    assert "a: " in capsys.readouterr().out and (tmp_path / "out" / "b" / "output.wav").is_file()


def test_a_list_that_is_not_utf_8_is_named(trained, tmp_path, capsys):
    (tmp_path / "list.jsonl").write_bytes(b'{"path": "M\xfcller.wav"}\n')
    assert generate(trained, tmp_path / "list.jsonl", tmp_path / "out") == 2
    assert "list.jsonl is not UTF-8" in capsys.readouterr().err
