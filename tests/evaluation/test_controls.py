"""Every option reaches every task: the number changes, by as much as is known, or the task refuses it by name."""

import csv
import json

import numpy as np
import pytest
import torch

from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.controls import Controls
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.scoring.chunked import score_with_swapped_memory
from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.score import score
from ttt_moshi.evaluation.scoring.scorer import ModelScorer, ScoringOptions
from ttt_moshi.evaluation.tasks.dialogue import Dialogue
from ttt_moshi.evaluation.tasks.perplexity import PerplexityTask
from ttt_moshi.evaluation.tasks.registry import TASKS, Benchmarks, check_controls

WINDOW = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory, kit):
    """A data set for every task on benchmarks, of numbers that `ToyTokens` reads."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def noise(path, frames):
        return kit.write_toy(root / path, rng.integers(0, 20, frames).tolist())

    for kind in ("lexical", "syntactic"):
        folder = root / "sLM21-dataset" / kind / "test"
        folder.mkdir(parents=True)
        with (folder / "gold.csv").open("w", newline="") as file:
            columns = ("filename", "id", "voice", "frequency", "word", "phones", "length", "correct", "type", "subtype")
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for item in range(2):
                for correct in (0, 1):
                    name = f"{item}{correct}"
                    noise(f"sLM21-dataset/{kind}/test/{name}.wav", 30 + item)
                    writer.writerow(
                        dict(filename=name, id=item, voice="A", frequency=1, word="w", phones="", length=3,
                             correct=correct, type="t", subtype="s")
                    )  # fmt: skip
    for folder in ("sSC", "tSC", "needle/2"):
        noise(f"{folder}/0_a_correct.wav", 30)
        noise(f"{folder}/1_a_incorrect.wav", 31)
    for half in (0, 1):
        noise(f"salmon/part/sample_0_{half}.wav", 30)
    for book in range(3):
        noise(f"librilight/small/{book}/b/x.wav", 70)
    for number in range(3):
        path = noise(f"repeat/3/{number}.wav", 60)
        path.with_suffix(".json").write_text(json.dumps({"first": [0.4, 0.8], "second": [3.2, 3.6]}))
    return root


# `hour` applies every control by itself and refuses to be given one (test_hour.py); `context_dialog` reads real audio
# alone (test_context_dialog.py).
ELSEWHERE = ("hour", "context_dialog")
NAMES = [name for name, spec in TASKS.items() if spec.runs_model and not spec.talks and name not in ELSEWHERE]


class Measure:
    """Runs one task under options; the numbers of its samples, which no tie hides."""

    def __init__(self, data, toy_tokens, clips, model):
        self.data, self.toy, self.clips, self.model = data, toy_tokens, clips, model

    def outcome(self, name: str, model=None, rows: int = 64, **options) -> Outcome:
        controls = Controls(**{"chunk_frames": 4000, **options})
        scorer = ModelScorer(model or self.model, "s", controls.scoring)
        engine = Engine(scorer, self.toy, NLLCache(None, scorer.identity), BatchPolicy(max_rows=rows))
        if name == "perplexity":
            text, user = controls.text or "given", controls.user or "natural"
            silence = lambda start, frames: torch.arange(start, start + frames).expand(8, frames) % 24  # noqa: E731
            return PerplexityTask(ClipTokens(self.clips, text, user, silence)).run(engine)
        if name == "dialogue":
            return Dialogue(ClipTokens(self.clips), None, {}).run(engine)
        return TASKS[name].build(Benchmarks(self.data, frames_of=self.toy.frames)).run(engine)

    def numbers(self, name: str, **options) -> np.ndarray:
        found = self.outcome(name, **options)
        values = [found.entry["value"]] if not isinstance(found.entry.get("reductions"), dict) else []
        for sample in found.samples:
            nll = sample.get("nll", {})
            values += [x for value in nll.values() for x in (value if isinstance(value, list) else [value])]
        return np.array(values)


@pytest.fixture(scope="module")
def measure(data, kit):
    return Measure(data, kit.tokens(), kit.clips([40, 33, 25]), kit.ttt_model(context=WINDOW, mini_batch_size=8))


@pytest.fixture(scope="module")
def usual(measure):
    return {name: measure.numbers(name) for name in NAMES}


BENCHMARKS_AND_RECORDINGS = [name for name in NAMES if name != "inner"]


@pytest.mark.parametrize("name", BENCHMARKS_AND_RECORDINGS)
def test_off_is_the_base_model_bit_for_bit(measure, usual, new_model, name):
    base = new_model(seed=1, context=WINDOW)
    base.load_state_dict({k: v for k, v in measure.model.state_dict().items() if ".ttt." not in k})
    off = measure.numbers(name, ttt="off")
    np.testing.assert_array_equal(off, measure.numbers(name, model=base))
    assert not np.allclose(off, usual[name], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("control", ["no_writes", "reset:8", "swapped:8", "sink"])
def test_a_control_changes_the_number(measure, usual, name, control):
    if name == "inner" and control == "swapped:8":
        pytest.skip("refused, see below")
    found = measure.numbers(name, **({"sink": 4} if control == "sink" else {"ttt": control}))
    assert found.shape == usual[name].shape and np.isfinite(found).all()
    assert not np.allclose(found, usual[name], atol=1e-4)
    if name == "inner" and control == "no_writes":
        assert found.tolist() == [0.0]  # what is never written stays at W0


# Tasks that are scored by the very code of another one are left to the slow tests here.
LIKE_OTHERS = ("sblimp", "tsc", "salmon", "needle", "context", "dialogue")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_OTHERS else name for name in NAMES]
)
@pytest.mark.parametrize("options", [
    {"ttt": "reset:100000"}, {"ttt": "swapped:100000"}, {"chunk_frames": 11}, {"rows": 1},
])  # fmt: skip
def test_what_must_change_nothing_changes_nothing(measure, usual, name, options):
    if name == "inner" and options.get("ttt") == "swapped:100000":
        pytest.skip("refused, see below")
    np.testing.assert_allclose(measure.numbers(name, **options), usual[name], atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("control", ["reset:8", "no_writes", "swapped:8"])
def test_chunks_and_batches_change_nothing_under_a_control(measure, control):
    for name in ("perplexity", "inner"):
        if name == "inner" and control == "swapped:8":
            continue
        whole = measure.numbers(name, ttt=control)
        for options in ({"chunk_frames": 11}, {"rows": 1}):
            np.testing.assert_allclose(measure.numbers(name, ttt=control, **options), whole, atol=2e-3, rtol=1e-4)


def test_the_text_and_user_of_recordings_are_those_that_were_asked_for(measure, new_clips):
    """Against clips that were edited by hand."""

    def edited(change) -> Measure:
        clips = new_clips([40, 33, 25])
        for row, length in zip(clips.codes, [40, 33, 25], strict=True):
            change(row[:, :length])
        return Measure(measure.data, measure.toy, clips, measure.model)

    def fill(rows, value):
        return lambda codes: codes[rows].copy_(torch.as_tensor(value).expand_as(codes[rows]))

    plain = measure.outcome("perplexity").entry["components"]
    for options, change in (
        ({"text": "absent"}, fill(slice(0, 1), -1)),
        ({"text": "pad"}, fill(slice(0, 1), 3)),
        ({"user": "absent"}, fill(slice(9, 17), -1)),
        ({"user": "silence"}, lambda codes: codes[9:].copy_(torch.arange(codes.shape[1]) % 24)),
        ({"text": "given", "user": "natural"}, lambda codes: None),
    ):
        found = measure.outcome("perplexity", **options).entry["components"]
        expected = edited(change).outcome("perplexity").entry["components"]
        assert found == expected, options
        assert any(name.startswith("text") for name in found) == (options.get("text") != "absent")
        assert (found["audio"]["nll"] == plain["audio"]["nll"]) == (options == {"text": "given", "user": "natural"})
    sampled = measure.outcome("perplexity", text="sampled", sampled_texts=2).entry["components"]
    assert not any(name.startswith("text") for name in sampled) and sampled["audio"] != plain["audio"]


def test_inner_refuses_what_means_nothing_for_it_and_two_options_that_exclude_one_another():
    for options in ({"ttt": "off"}, {"ttt": "swapped:5"}, {"text": "sampled"}):
        (reason,) = check_controls(NAMES, Controls(**options)).values()
        assert next(iter(options.values())) in reason
    assert not check_controls(NAMES, Controls(ttt="reset:5", text="pad", user="absent"))
    for wrong in ("offf", "reset", "reset:0", "reset:-3", "swapped:x", "reset:5:6", "ON", "swapped:"):
        with pytest.raises(EvaluationError, match="it is on, off, no_writes, reset:FRAMES or swapped:FRAMES"):
            Controls(ttt=wrong)
    with pytest.raises(EvaluationError, match="one frame at a time"):
        Controls(ttt="reset:5", text="sampled")


def test_a_model_without_a_memory_is_told_so(new_model):
    for options in ({"gate": 0.0}, {"inner_lr": 0.0}, {"reset_every": 4}, {"swap_every": 4}):
        with pytest.raises(EvaluationError, match="no TTT layers"):
            ModelScorer(new_model(), "s", ScoringOptions(**options))


def test_a_swapped_memory_is_the_other_recordings(new_ttt_model, new_codes):
    model, codes, others = new_ttt_model(context=WINDOW), new_codes(2, 30), new_codes(2, 30, seed=5)
    frames = torch.tensor([30, 30])
    whole = score(model, codes).nll

    def swapped(other: torch.Tensor, every: int, chunk: int = 0) -> torch.Tensor:
        return score_with_swapped_memory(model, codes, frames, other, every, chunk).nll

    torch.testing.assert_close(swapped(codes, 7), whole, atol=1e-4, rtol=0, equal_nan=True)  # its own memory
    found = swapped(others, 12)
    torch.testing.assert_close(found[..., :11], whole[..., :11], atol=1e-4, rtol=0, equal_nan=True)
    assert not torch.allclose(found[..., 12:].nan_to_num(), whole[..., 12:].nan_to_num(), atol=1e-3)
    torch.testing.assert_close(swapped(others, 12, chunk=5), found, atol=1e-4, rtol=0, equal_nan=True)
    later = others.clone()
    later[..., 24:] = new_codes(2, 6, seed=9)
    # What the other recording holds after the last exchange is never remembered.
    assert torch.equal(swapped(later, 12).nan_to_num(), found.nan_to_num())


def test_the_other_recording_is_another_one(measure):
    """In tasks whose sequences are parts of few books, none is given the memory of its own book."""
    from ttt_moshi.evaluation.examples import Example, Piece, Source
    from ttt_moshi.evaluation.scoring.engine import _others

    books = [Source.file(path) for path in sorted(measure.data.rglob("librilight/**/*.wav"))]
    parts = [Example(f"{i}@{n}", (Piece(book, 0, n),)) for i, book in enumerate(books) for n in (10, 20, 100 + i)]
    lengths = {part.id: part.pieces[0].stop for part in parts}
    found = _others(parts, lengths)
    assert all(not found[part.id].files & part.files for part in parts)
    assert {found[part.id].id for part in parts} == {"2@102", "1@101"}
    with pytest.raises(EvaluationError, match="needs another recording"):
        _others(parts[:3], lengths)


def test_prefixes_are_read_whole_whatever_the_chunk_and_refused_where_they_cannot_be(measure, new_clips):
    clips = new_clips([40, 33, 25])
    clips.prefix_lengths = torch.tensor([12, 0, 3])
    with_prefix = Measure(measure.data, measure.toy, clips, measure.model)
    whole = with_prefix.numbers("perplexity")
    tokens = with_prefix.outcome("perplexity").entry["components"]["semantic"]["tokens"]
    assert tokens == 40 + 33 + 25 - 12 - 3
    np.testing.assert_allclose(with_prefix.numbers("perplexity", chunk_frames=5), whole, atol=1e-3)
    np.testing.assert_allclose(with_prefix.numbers("perplexity", rows=1), whole, atol=1e-3)
    assert not np.allclose(whole, measure.numbers("perplexity"), atol=1e-3)
    for options in ({"ttt": "reset:8"}, {"ttt": "swapped:8"}, {"text": "sampled", "sampled_texts": 1}):
        with pytest.raises(Exception, match="prefix"):
            with_prefix.numbers("perplexity", **options)
