"""Every task by its name: what it needs, how it is built, and which options it cannot apply.

A package adds tasks of its own by the entry point group `ttt_moshi.tasks`, each of which names a `TaskSpec`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from ttt_moshi.errors import UserError
from ttt_moshi.evaluation.controls import Controls, runs_no_model
from ttt_moshi.evaluation.conversations import Talker, needed
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece
from ttt_moshi.evaluation.hour.reading import require_enough
from ttt_moshi.evaluation.judge import judged_by
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.pairs import some_of, subset
from ttt_moshi.evaluation.recorded import EvaluationData
from ttt_moshi.evaluation.results import is_task_name
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.scoring.recordings import count_frames
from ttt_moshi.evaluation.streams import TextMode, UserMode
from ttt_moshi.evaluation.tasks import context_dialog, examiner, hour, overlap, published_questions, spoken_questions
from ttt_moshi.evaluation.tasks.books import Book, find_books
from ttt_moshi.evaluation.tasks.continuation import Continuation, find_long
from ttt_moshi.evaluation.tasks.dialogue import Dialogue
from ttt_moshi.evaluation.tasks.foreign import GuardedTask, guard
from ttt_moshi.evaluation.tasks.free_running import MEANS as KEEPS_TALKING
from ttt_moshi.evaluation.tasks.free_running import FreeRunning
from ttt_moshi.evaluation.tasks.full_duplex import FullDuplex, Outputs, find_situations, read_output
from ttt_moshi.evaluation.tasks.inner_loss import InnerLoss, cannot_apply
from ttt_moshi.evaluation.tasks.long_context import Context, Position, Repeat
from ttt_moshi.evaluation.tasks.perplexity import PerplexityTask
from ttt_moshi.evaluation.tasks.slm21 import lexical_pairs, syntactic_pairs
from ttt_moshi.evaluation.tasks.spoken_repeat import SpokenRepeat, find_repeats
from ttt_moshi.evaluation.tasks.stories import needle_pairs, salmon_pairs, story_pairs
from ttt_moshi.evaluation.tasks.turns import Turns
from ttt_moshi.evaluation.tasks.two_choices import TwoChoices

INNER_FRAMES = 2048
NO_BENCHMARKS = "no benchmark data: name its folder with --data_root (`ttt-moshi data make-bench` makes a small one)"
NO_RECORDINGS = "no recordings: name them with --data or `data.eval_data`"
ENTRY_POINTS = "ttt_moshi.tasks"


class Task(Protocol):
    """Something that can be measured."""

    @property
    def name(self) -> str: ...

    def run(self, engine: Engine) -> Outcome: ...


@dataclass(frozen=True)
class Benchmarks:
    """Where the data is and how much of it is used. Everything here is part of the result.

    Args:
        data_root: folder of benchmarks, None where none was named.
        recorded: the user's own recordings, None where none were named.
        minutes: length of what `hour` measures.
        asking: how spoken questions are asked.
        talker: the model as one that talks; None before there is one.
        server: address of a server of the same checkpoint, for the task that talks over one.
        outputs_of: name of another model whose outputs are measured, for the task that can; None lets this one talk.
    """

    data_root: Path | None
    split: str = "test"
    max_items: int | None = None
    seed: int = 0
    frames_of: Callable[[Example], int] = count_frames
    recorded: EvaluationData | None = None
    minutes: float = 60.0
    asking: spoken_questions.Asking = field(default_factory=spoken_questions.Asking)
    talker: Talker | None = None
    server: str | None = None
    outputs_of: str | None = None

    @property
    def root(self) -> Path:
        """The folder of benchmarks. Raises `EvaluationError` where there is none."""
        if self.data_root is None:
            raise EvaluationError(NO_BENCHMARKS)
        return self.data_root

    def books(self) -> tuple[list[Book], dict[str, int]]:
        """The books in use, and the length of each in frames."""
        books = some_of(find_books(self.root), lambda book: book.id, self.max_items, self.seed)
        return books, {book.id: self.frames_of(Example(book.id, (Piece(book.source),))) for book in books}

    def recordings(self) -> EvaluationData:
        """The user's own recordings. Raises `EvaluationError` where there are none."""
        if self.recorded is None:
            raise EvaluationError(NO_RECORDINGS)
        return self.recorded


@dataclass(frozen=True)
class TaskSpec:
    """A task as `--tasks` knows it.

    Args:
        build: finds the data and returns the task; raises `UserError` where some is missing.
        check: the same without a model; None where `build` needs none.
        needs: the data, in a few words, for `--tasks list`.
        means: what the value says, in a clause; where chance has a value, what a better one shows.
        version: changes whenever the same model and data would get another number.
        text, user: the streams that are usual for it.
        runs_model: whether options about the model act on it.
        talks: whether the model talks by itself, which it does not in training.
        options: those of the command that few tasks know, and this one does.
        of_text: whether it is a number of the text too, which a model that says nothing has.
        cannot_apply: the reason why some option has no meaning for it, None where it has.
        protocol: what decides its number beside the model, how that is read, and the data; values that differ in it are
            not compared.
    """

    build: Callable[[Benchmarks], Task]
    needs: str
    means: str = ""
    version: int = 1
    text: TextMode = "absent"
    user: UserMode = "silence"
    cannot_apply: Callable[[Controls], str | None] = lambda controls: None
    check: Callable[[Benchmarks], object] | None = None
    runs_model: bool = True
    talks: bool = False
    of_text: bool = False
    options: frozenset[str] = frozenset()
    protocol: Callable[[Benchmarks], Mapping[str, Any]] = lambda benchmarks: {}


def _perplexity(b: Benchmarks) -> Task:
    return PerplexityTask(*b.recordings().clips())


def _dialogue(b: Benchmarks) -> Task:
    return Dialogue(*b.recordings().whole(), b.recordings().turns())


def _free_running(b: Benchmarks) -> Task:
    recorded = b.recordings()
    return FreeRunning(*recorded.whole(), recorded.makers(), needed(b.talker).state_id)


def _hour(b: Benchmarks) -> Task:
    recorded, talk, silent = b.recordings(), None, "no model that talks"
    if b.talker is not None and recorded.codec is not None:
        try:
            items = recorded.users(b.minutes, recorded.max_items or hour.CONVERSATIONS)
            talk = hour.Talk(b.talker, recorded.codec, items)
        except EvaluationError as reason:
            silent = str(reason)
    return hour.Hour(*recorded.whole(), b.minutes, recorded.controls.sink or hour.SINK, talk, silent)


def _check_hour(b: Benchmarks) -> None:
    require_enough(b.recordings().lengths(), b.minutes)


def _turns(b: Benchmarks) -> Task:
    return Turns(b.recordings().dialogues(), b.talker)


def _swuggy(b: Benchmarks) -> Task:
    pairs = subset(lexical_pairs(b.root, b.split), b.max_items, b.seed, "band")
    return TwoChoices("swuggy", pairs)


def _sblimp(b: Benchmarks) -> Task:
    pairs = subset(syntactic_pairs(b.root, b.split), b.max_items, b.seed, "type")
    return TwoChoices("sblimp", pairs, macro="type")


def _story(name: str, folder: str) -> Callable[[Benchmarks], Task]:
    def build(b: Benchmarks) -> Task:
        pairs = subset(story_pairs(b.root, folder), b.max_items, b.seed, None)
        return TwoChoices(name, pairs, continuation=True)

    return build


def _salmon(b: Benchmarks) -> Task:
    # Acoustic consistency is a matter of all codebooks alike.
    pairs = subset(salmon_pairs(b.root), b.max_items, b.seed, "part")
    return TwoChoices("salmon", pairs, reduction="uniform", macro="part")


def _needle(b: Benchmarks) -> Task:
    return TwoChoices("needle", subset(needle_pairs(b.root), b.max_items, b.seed, "distance"), macro="distance")


def _spoken_repeat(b: Benchmarks) -> Task:
    passages = find_repeats(b.root, b.frames_of)
    return SpokenRepeat(some_of(passages, lambda p: p.example.id, b.max_items, b.seed, lambda p: f"{p.seconds:g}"))


def _continuation(b: Benchmarks) -> Task:
    return Continuation(some_of(find_long(b.root), lambda example: example.id, b.max_items, b.seed), b.talker)


def _full_duplex(b: Benchmarks) -> Task:
    situations = some_of(find_situations(b.root), lambda s: s.id, b.max_items, b.seed, lambda s: s.subset)
    outputs = None
    if b.outputs_of is not None:
        outputs = Outputs(b.outputs_of, [read_output(situation.folder) for situation in situations])
    return FullDuplex(situations, b.talker, outputs)


def _overlap(b: Benchmarks) -> Task:
    overlaps = overlap.some(overlap.find_overlaps(b.root), b.max_items, b.seed)
    return overlap.Overlaps(overlaps, b.talker, b.asking.judge)


def _examiner(b: Benchmarks) -> Task:
    tasks = examiner.some(examiner.find_tasks(b.root), b.max_items, b.seed)
    return examiner.Examination(tasks, b.talker, b.server, b.asking.judge)


def _context_dialog(b: Benchmarks) -> Task:
    every = context_dialog.find_recalls(b.root)
    return context_dialog.ContextDialog(context_dialog.some(every, b.max_items, b.seed), every)


def _asked(name: str, find: Callable[[Path], list[spoken_questions.SpokenQuestion]]) -> Callable[[Benchmarks], Task]:
    def build(b: Benchmarks) -> Task:
        questions = spoken_questions.some(find(b.root), b.max_items, b.seed)
        return spoken_questions.SpokenQuestions(name, questions, b.talker, b.asking)

    return build


def _listed(name: str, find: Callable[[Path], spoken_questions.Lists]) -> Callable[[Benchmarks], Task]:
    def build(b: Benchmarks) -> Task:
        lists = find(b.root)
        questions = spoken_questions.some(lists.questions, b.max_items, b.seed)
        return spoken_questions.SpokenQuestions(name, questions, b.talker, b.asking, lists.left_out)

    return build


def _drawn(b: Benchmarks) -> dict[str, Any]:
    """How a model that talks draws what it says."""
    return {} if b.talker is None else asdict(b.talker.driver.sampling)


def _examined(b: Benchmarks) -> dict[str, Any]:
    """A server draws by options of its own."""
    return {"server": b.server is not None, **({} if b.server is not None else _drawn(b))}


def _answered(b: Benchmarks) -> dict[str, Any]:
    return {**_drawn(b), "answers": b.asking.draws, "answer_seconds": b.asking.seconds}


def _judged(b: Benchmarks) -> dict[str, Any]:
    return {**_answered(b), **({} if b.asking.judge is None else {"judge": judged_by(b.asking.judge)})}


_ASKING = frozenset({"slots", "answers", "answer_seconds"})


def _questions(name: str) -> TaskSpec:
    def find(root: Path) -> list[spoken_questions.SpokenQuestion]:
        return spoken_questions.open_questions(root, name)

    needs = f"{name}/{name}.csv and audios/ (OpenAudioBench), or {name}/questions.jsonl"
    means = "this share of questions is answered in what the model says by itself"
    return TaskSpec(
        _asked(name, find),
        needs,
        means,
        version=2,
        cannot_apply=spoken_questions.cannot_apply,
        talks=True,
        options=_ASKING,
        protocol=_answered,
    )


def _inner(b: Benchmarks) -> Task:
    books, _ = b.books()
    return InnerLoss([Example(book.id, (Piece(book.source, 0, INNER_FRAMES),)) for book in books])


_RECORDINGS = "recordings with transcripts: --data or `data.eval_data`"
_BOOKS = "librilight/<size>/<speaker>/<book>/*.flac with .json"

TASKS: dict[str, TaskSpec] = {
    "perplexity": TaskSpec(
        _perplexity,
        _RECORDINGS,
        "each audio token of the agent is as uncertain as a choice among so many; lower is better",
        text="given",
        user="natural",
        check=lambda b: b.recordings().check(),
        of_text=True,
    ),
    "dialogue": TaskSpec(
        _dialogue,
        _RECORDINGS,
        "what the agent says next costs so many nats a token in whole calls; lower is better",
        text="given",
        user="natural",
        check=lambda b: b.recordings().check(),
    ),
    "hour": TaskSpec(
        _hour,
        f"{_RECORDINGS}, three at least, all but any two in a row longer than --minutes and 68 s",
        "a passage heard that long ago is still known",
        text="given",
        user="natural",
        cannot_apply=hour.cannot_apply,
        check=_check_hour,
        options=frozenset({"minutes", "slots"}),
        version=2,
        protocol=lambda b: {"minutes": b.minutes},
    ),
    "turns": TaskSpec(
        _turns,
        "stereo recordings of dialogues: --data",
        "its units, pauses, gaps and overlaps are off by so many seconds a minute; lower is better",
        text="given",
        user="natural",
        cannot_apply=spoken_questions.cannot_apply,
        check=lambda b: b.recordings().check(),
        talks=True,
        options=frozenset({"slots"}),
        protocol=_drawn,
    ),
    "free_running": TaskSpec(
        _free_running,
        "conversations that `ttt-moshi generate` wrote: --data",
        KEEPS_TALKING,
        text="given",
        user="natural",
        cannot_apply=runs_no_model,
        check=lambda b: b.recordings().check(),
        runs_model=False,
        version=2,
    ),
    "swuggy": TaskSpec(
        _swuggy,
        "sLM21-dataset/lexical/{dev,test}",
        "real words are found likelier than made-up ones",
        options=frozenset({"split"}),
    ),
    "sblimp": TaskSpec(
        _sblimp,
        "sLM21-dataset/syntactic/{dev,test}",
        "grammatical sentences are found likelier than others",
        options=frozenset({"split"}),
    ),
    "ssc": TaskSpec(
        _story("ssc", "sSC"),
        "sSC/<n>_<uuid>_{correct,incorrect}.wav",
        "the end that follows from a story is found likelier than one that does not",
    ),
    "tsc": TaskSpec(
        _story("tsc", "tSC"),
        "tSC/<n>_<uuid>_{correct,incorrect}.wav",
        "the end of a story is found likelier than one about something else",
    ),
    "salmon": TaskSpec(
        _salmon,
        "salmon/<part>/sample_<i>_{0,1}.wav",
        "speech whose voice, room and mood stay the same is found likelier than speech in which they change",
    ),
    "position": TaskSpec(
        lambda b: Position(b.books()[0]),
        _BOOKS,
        "a semantic token of a whole book costs so many nats; lower is better",
    ),
    "context": TaskSpec(
        lambda b: Context(*b.books()),
        _BOOKS,
        "what was said longer ago makes the end of a book easier to predict",
        version=2,
    ),
    "repeat": TaskSpec(
        lambda b: Repeat(*b.books()), _BOOKS, "a passage is easier to predict where it was heard before"
    ),
    "spoken_repeat": TaskSpec(
        _spoken_repeat,
        "repeat/<seconds>/*.wav with .json",
        "a passage is easier to predict where it was heard before",
        version=3,
    ),
    "needle": TaskSpec(
        _needle,
        "needle/<seconds>/<n>_<uuid>_{correct,incorrect}.wav",
        "a fact told a while ago still decides which answer is found likelier",
    ),
    "context_dialog": TaskSpec(
        _context_dialog,
        "context_dialog/<name>.jsonl with turns, question and answer",
        "what was said in a dialogue makes the answer to a question about it likelier",
        version=2,
        user="natural",
        cannot_apply=context_dialog.cannot_apply,
    ),
    "continuation": TaskSpec(
        _continuation,
        "librispeech-long/<split>/<speaker>/<chapter>/*.flac",
        "a semantic token of the true continuation costs so many nats; lower is better",
        cannot_apply=spoken_questions.cannot_apply,
        talks=True,
        options=frozenset({"slots"}),
        version=2,
    ),
    "full_duplex": TaskSpec(
        _full_duplex,
        "full_duplex/<subset>/<id>/ of Full-Duplex-Bench v1; --outputs_of, if they hold what another model has said",
        "in this share of situations the turn is taken where it is free and left where it is not",
        version=2,
        cannot_apply=spoken_questions.cannot_apply,
        talks=True,
        options=frozenset({"slots", "outputs_of"}),
        protocol=lambda b: _drawn(b) if b.outputs_of is None else {},
    ),
    "overlap": TaskSpec(
        _overlap,
        "v1_5/<subset>/<id>/ of Full-Duplex-Bench v1.5; --judge, if what is said is to be rated",
        "in this share of overlaps an interruption is answered and anything else passed over",
        cannot_apply=spoken_questions.cannot_apply,
        talks=True,
        options=frozenset({"slots", "judge"}),
        protocol=_drawn,
    ),
    "examiner": TaskSpec(
        _examiner,
        "examiner/<family>/<id>/task.json with recorded turns; --judge, if conversations are to be rated",
        "this share of an examiner's turns is answered after its end and not interrupted",
        version=2,
        cannot_apply=spoken_questions.cannot_apply,
        talks=True,
        options=frozenset({"slots", "judge", "server"}),
        protocol=_examined,
    ),
    **{name: _questions(name) for name in spoken_questions.LAYOUTS},
    "spoken_choices": TaskSpec(
        _listed("spoken_choices", published_questions.choices),
        "spoken_choices/<name>.jsonl with audio, choices and answer; voicebench/{openbookqa,mmsu}",
        "the right choice is said more often than by guessing",
        version=3,
        cannot_apply=spoken_questions.cannot_apply,
        talks=True,
        options=_ASKING,
        protocol=_answered,
    ),
    "judged_answers": TaskSpec(
        _listed("judged_answers", published_questions.judged),
        "judged_answers/<name>.jsonl with audio, question and reference; voicebench/, big_bench_audio/, "
        "URO-Bench-data/; --judge",
        "the judge rates what the model says so on average; higher is better",
        cannot_apply=spoken_questions.cannot_apply,
        talks=True,
        options=_ASKING | {"judge"},
        protocol=_judged,
    ),
    "inner": TaskSpec(
        _inner,
        f"{_BOOKS}; a model with TTT layers",
        "what the memory has written makes its inner task easier",
        cannot_apply=cannot_apply,
    ),
}

PAPER_METRICS = ("swuggy", "sblimp", "ssc", "tsc")
ON_RECORDINGS = ("perplexity", "dialogue", "hour", "turns", "free_running")
"""tasks on the user's own recordings, all others need benchmarks"""
ALIASES = {"ppl": "perplexity"}


@cache
def known_tasks() -> dict[str, TaskSpec]:
    """The tasks of this package and of those installed beside it.

    One of another package that cannot be loaded, or has the name of one that is there, is a task that cannot run:
    whoever asks for it is told why, and nobody else.
    """
    found = dict(TASKS)
    for point in entry_points(group=ENTRY_POINTS):
        try:
            spec = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a foreign module does
            what = " ".join(str(error).split()) or type(error).__name__
            spec = _broken(f"the task `{point.name}` ({point.value}) cannot be loaded: {what}")
        if not isinstance(spec, TaskSpec):
            spec = _broken(f"the task `{point.name}` of {point.value} is no TaskSpec")
        elif point.name in found:
            spec = _broken(f"the task `{point.name}` of {point.value} is there already: uninstall one of the two")
        elif not is_task_name(point.name):
            spec = _broken(
                f"{point.name!r} of {point.value} is no name for a task: letters, digits, `_`, `.` and `-` are"
            )
        elif type(spec.version) is not int:
            spec = _broken(f"the task `{point.name}` of {point.value} is of version {spec.version!r}, and no number")
        found[point.name] = _guarded(point.name, spec)
    return found


def _guarded(name: str, spec: TaskSpec) -> TaskSpec:
    """A task of another package, whose own errors end it alone."""
    build = guard(name, spec.build)
    return replace(
        spec,
        build=lambda b: GuardedTask(name, build(b)),
        check=guard(name, spec.check or spec.build),
        cannot_apply=guard(name, spec.cannot_apply),
        protocol=guard(name, spec.protocol),
    )


def _broken(reason: str) -> TaskSpec:
    """In the place of a task of another package that cannot be had."""

    def refuse(b: Benchmarks) -> Task:
        raise EvaluationError(reason)

    return TaskSpec(refuse, f"broken: {reason}")


def parse_tasks(names: str) -> list[str]:
    """Task names from a comma-separated list, in small letters or as they are; `all` is every one. Raises
    `EvaluationError` with the known names."""
    known = known_tasks()
    if names.strip() == "all":
        return list(known)
    words = [name.strip() for name in names.split(",") if name.strip()]
    if not words:
        raise EvaluationError(f"no task is named (there are {', '.join(known)})")
    # Names of other packages may have capitals, and one of them may differ from another in nothing else.
    called = {name.lower(): name for name in known} | ALIASES | {name: name for name in known}
    found = []
    for word in words:
        name = called.get(word) or called.get(word.lower())
        if name is None:
            nearest = get_close_matches(word.lower(), called, n=1)
            hint = f"; did you mean `{called[nearest[0]]}`?" if nearest else ""
            raise EvaluationError(f"unknown task `{word}`{hint} (there are {', '.join(known)})")
        found.append(name)
    return list(dict.fromkeys(found))


def check_controls(names: list[str], controls: Controls) -> dict[str, str]:
    """The tasks that cannot apply some option, with the reason."""
    known = known_tasks()
    found = {}
    for name in names:
        try:
            reason = known[name].cannot_apply(controls)
        except UserError as error:
            reason = str(error)
        if reason is not None:
            found[name] = reason
    return found


def tasks_by_option() -> dict[str, list[str]]:
    """Options of the command that few tasks know, each with the tasks that do."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, spec in known_tasks().items():
        for option in sorted(spec.options):
            found[option].append(name)
    return found
