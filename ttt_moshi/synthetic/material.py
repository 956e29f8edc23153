"""Everything the demo needs, from nothing: dialogues to train and evaluate on, and a small base model to start from."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ttt_moshi.data.codec import Codec
from ttt_moshi.data.corpus import Corpus
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.loader import ClipLoader, EvalSet
from ttt_moshi.files import write_atomically
from ttt_moshi.synthetic.dialogues import (
    MOSHI_VOICES,
    USER_VOICES,
    dialogue_words,
    make_dialogues,
    make_monologues,
    make_tales,
    read_words,
)
from ttt_moshi.synthetic.espeak import Utterance, speak
from ttt_moshi.synthetic.grammar import dialogue
from ttt_moshi.synthetic.small_mimi import MimiSize, fit_mimi, mimi_config, save_mimi
from ttt_moshi.synthetic.small_moshi import (
    MoshiSize,
    Pretraining,
    lm_config,
    mean_nll,
    new_lm,
    pretrain,
    save_lm,
    write_config,
)
from ttt_moshi.synthetic.tokenizer import train_tokenizer

Progress = Callable[[str, int, int], None]
"""called with what is being done, how many parts are done, and how many there are"""

FORMAT_VERSION = 7
RECORD = "material.json"
PARTS = ("train", "eval", "pretraining", "base")
FILE_NAMES = {
    "moshi_name": "model.safetensors",
    "mimi_name": "mimi-small.safetensors",
    "mimi_config_name": "mimi_config.json",
    "tokenizer_name": "tokenizer_spm_small.model",
}


@dataclass(frozen=True)
class MaterialSize:
    """How much speech and how large a model."""

    train_dialogues: int = 40
    """of about 33 s each"""
    eval_dialogues: int = 8
    pretraining_dialogues: int = 0
    """others, on which the base model is trained; they are deleted afterwards. Without them it has heard words,
    sentences and tales, but never a conversation, so that training has something to teach"""
    pretraining_monologues: int = 60
    """likewise, of about 40 s each, words and sentences"""
    pretraining_tales: int = 60
    """likewise, of about 35 s each, five tales in one voice"""
    questions: int = 3
    """about earlier facts, per dialogue"""
    stories: int = 1
    """per dialogue"""
    fitting_sentences: int = 120
    """sentences that Mimi's codebooks are fitted on, all voices in turn"""
    vocabulary: int = 384
    mimi: MimiSize = field(default_factory=MimiSize)
    moshi: MoshiSize = field(default_factory=MoshiSize)
    pretraining: Pretraining = field(default_factory=Pretraining)


DEMO = MaterialSize()
TINY = MaterialSize(
    train_dialogues=4,
    eval_dialogues=2,
    pretraining_dialogues=2,
    pretraining_monologues=1,
    pretraining_tales=1,
    questions=1,
    stories=0,
    fitting_sentences=45,
    vocabulary=160,
    mimi=MimiSize(bins=64, components=16),
    moshi=MoshiSize(dim=64, heads=2, layers=2, context=32, depformer_dim=32, depformer_layers=1),
    pretraining=Pretraining(steps=8, batch_size=4, clip_seconds=4.0),
)


@dataclass(frozen=True)
class Material:
    """Where everything is."""

    folder: Path
    train_data: Path
    """jsonl file"""
    eval_data: Path
    """jsonl file"""
    base_model: Path
    """folder with the files of a Moshi repository on the hub; give it as `moshi_paths.hf_repo_id`"""
    eval_nll: dict[str, float]
    """mean NLL in nats of the base model on the eval data: text_word, text_padding, semantic, acoustic"""
    uniform_nll: dict[str, float]
    """the same for a model that knows nothing: ln of the number of tokens"""


def make_demo_material(
    folder: Path, seed: int = 0, size: MaterialSize = DEMO, progress: Progress | None = None
) -> Material:
    """Makes dialogues and a base model in `folder`, or finds that it has been done.

    The result depends on `seed` and `size` (and on the versions of espeak-ng and torch). A folder with the same
    settings is used as it is; one that was not finished, or has other settings, is made again.

    Raises `DataError` if `folder` holds something that was not made here: nothing of it is touched.
    """
    report = progress or (lambda what, done, total: None)
    folder = Path(folder)
    record = folder / RECORD
    settings = {"format_version": FORMAT_VERSION, "seed": seed, **asdict(size)}
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if record.is_file():
        known = _read_record(record)
        if known.get("complete") and known.get("fingerprint") == fingerprint:
            return _material(folder, known)
        for part in PARTS:
            shutil.rmtree(folder / part, ignore_errors=True)
    elif folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and was not made by this command: name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    begun = {"fingerprint": fingerprint, "settings": settings, "complete": False}
    _write_record(record, begun)
    results = _make(folder, seed, size, report)
    done = {**begun, **results, "complete": True}
    _write_record(record, done)
    return _material(folder, done)


def make_tiny_material(folder: Path, seed: int = 0) -> Material:
    """The same in a few seconds, for tests: a minute of speech, and a model that has learned next to nothing."""
    return make_demo_material(folder, seed, TINY)


def demo_words(seed: int = 0, size: MaterialSize = DEMO) -> list[str]:
    """The words of the training dialogues of `make_demo_material`, without making them."""
    return dialogue_words(f"{seed}/train", size.train_dialogues, size.questions, size.stories)


def _make(folder: Path, seed: int, size: MaterialSize, report: Progress) -> dict[str, dict[str, float]]:
    def speech(part: str, count: int) -> Path:
        return make_dialogues(folder / part, f"{seed}/{part}", count, size.questions, size.stories, report)

    train_data = speech("train", size.train_dialogues)
    eval_data = speech("eval", size.eval_dialogues)
    monologues = make_monologues(
        folder / "pretraining/monologues", f"{seed}/monologues", size.pretraining_monologues, report
    )
    tales = make_tales(folder / "pretraining/tales", f"{seed}/tales", size.pretraining_tales, report)
    dialogues = None
    if size.pretraining_dialogues:
        dialogues = speech("pretraining/dialogues", size.pretraining_dialogues)
    pretraining_data = [data for data in (dialogues, monologues, tales) if data is not None]
    base = folder / "base"
    base.mkdir()
    words = [word for data in pretraining_data for word in read_words(data)]
    tokenizer = train_tokenizer(words, base / FILE_NAMES["tokenizer_name"], size.vocabulary)
    report("fitting Mimi", 0, 1)
    mimi = fit_mimi(fitting_speech(seed, size.fitting_sentences), size.mimi, seed)
    save_mimi(mimi, size.mimi, base / FILE_NAMES["mimi_name"], base / FILE_NAMES["mimi_config_name"])
    report("fitting Mimi", 1, 1)
    codec = Codec(mimi, mimi_config(size.mimi))
    corpora = []
    for data in (pretraining_mix(monologues, tales, dialogues), str(eval_data), str(train_data)):
        corpus = Corpus(data, codec, tokenizer, size.pretraining.clip_seconds)
        corpus.encode_all(on_recording=lambda name, done, total: report("encoding speech", done, total))
        corpora.append(corpus)
    results = _make_moshi(base, seed, size, tokenizer.vocab_size(), corpora[0], corpora[1], report)
    shutil.rmtree(folder / "pretraining")
    return results


def pretraining_mix(monologues: Path, tales: Path, dialogues: Path | None) -> str:
    """The kinds as a source list: every second clip is a dialogue, or a monologue where there are none.

    `Pretraining.hidden_text` hides the text of the others: a single voice without a transcript is how benchmarks of
    speech are scored, and what most of Moshi's own pre-training speech is.
    """
    return f"{monologues},{tales}" if dialogues is None else f"{dialogues}:2,{monologues},{tales}"


def fitting_speech(seed: int, sentences: int) -> list[Utterance]:
    """Sentences of other dialogues than the training ones, spoken by all voices in turn."""
    rng = random.Random(f"{seed}/fitting")
    texts: list[str] = []
    while len(texts) < sentences:
        texts += [turn.text for turn in dialogue(rng)]
    voices = MOSHI_VOICES + USER_VOICES
    return [speak(text, voices[index % len(voices)]) for index, text in enumerate(texts[:sentences])]


def _make_moshi(
    base: Path, seed: int, size: MaterialSize, text_card: int, train: Corpus, evaluation: Corpus, report: Progress
) -> dict[str, dict[str, float]]:
    config = lm_config(size.moshi, text_card, size.mimi.bins)
    model = new_lm(config, seed)
    pretrain(
        model,
        ClipLoader(train, seed=seed, shuffle=True),
        size.pretraining,
        lambda step, steps, loss: report(f"pre-training Moshi, loss {loss:.2f}", step, steps),
    )
    save_lm(model, base / FILE_NAMES["moshi_name"])
    write_config(base / "config.json", config, FILE_NAMES)
    text, audio = math.log(text_card), math.log(size.mimi.bins)
    uniform = {"text_word": text, "text_padding": text, "semantic": audio, "acoustic": audio}
    return {"eval_nll": mean_nll(model, EvalSet(evaluation)), "uniform_nll": uniform}


def _material(folder: Path, record: dict) -> Material:
    return Material(
        folder=folder,
        train_data=folder / "train" / "data.jsonl",
        eval_data=folder / "eval" / "data.jsonl",
        base_model=folder / "base",
        eval_nll=record["eval_nll"],
        uniform_nll=record["uniform_nll"],
    )


def _read_record(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error}): delete the folder {path.parent} and try again") from error


def _write_record(path: Path, record: dict) -> None:
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
