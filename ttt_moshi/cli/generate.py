"""Let a checkpoint answer recordings."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.checkpoint_facts import progress_bar
from ttt_moshi.cli.talking import add_options, check_options, open_prompt, open_speaker
from ttt_moshi.errors import UserError
from ttt_moshi.files import read_text

if TYPE_CHECKING:
    from torch import Tensor

    from ttt_moshi.inference import Answer, Speaker

MAX_EXTRA_SECONDS = 3600.0
SAY_EXTRA_SECONDS = 10.0
TRANSLATION_SECONDS = 60.0
"""for the rest of a translation; it normally takes a few"""
WRITING_SECONDS = 1.0
"""after the last word, for a model that writes what it hears"""
SAY_VOICE = "en-us"
NOT_FINISHED = "{}: the translation did not come to its end; give it more time with --extra_seconds"


def main(argv: list[str]) -> int:
    """`ttt-moshi generate --checkpoint_dir D --input user.wav --out talk.wav`; 1 if a conversation of many failed."""
    parser = Parser(
        prog="ttt-moshi generate",
        description="Plays recordings of the user to Moshi, frame by frame, and writes the conversations. For one "
        "recording, --out is a stereo file with Moshi on the left and the user on the right, and beside it (.json) are "
        "Moshi's words with their times, both in the format of training data. For many (a folder, or a jsonl file with "
        'one {"path": ...} a line), --out is a folder that gets NAME/input.wav, NAME/output.wav and NAME/output.json '
        "for each; started again, it goes on with those that are not there yet.",
    )
    add = parser.add_argument
    add("--input", type=Path, help="recording of the user, or a folder or jsonl file of recordings")
    add("--say", help="instead of --input: what the user says, in text; espeak-ng speaks it (English, extra `demo`)")
    add("--out", type=Path, required=True, help="the conversation, a .wav or .flac file; or a folder, for many")
    add("--overwrite", action="store_true", help="replace what is there already; without it nothing is ever replaced")
    add(
        "--channel", choices=("left", "right"), default="right", help="the user's in stereo files; default: %(default)s"
    )
    add(
        "--extra_seconds",
        type=float,
        help="silence after what the user says, for the answer; default: 0, with --say 10; for a model that only "
        "writes, as long as that takes; one that translates stops when it says that it has finished, after 60 at most",
    )
    add("--slots", type=int, default=4, help="of many recordings, so many at once; default: %(default)s")
    add(
        "--resume_session", type=Path, help="go on with a saved conversation: it remembers what was said (and its seed)"
    )
    add("--save_session", type=Path, help="save the conversation at the end, to go on another day")
    add_options(parser)
    options = parser.parse_args(argv)
    check_options(options)
    if (options.input is None) == (options.say is None):
        raise UserError("what does the user say? pass --input with a recording, or --say with a text, and not both")
    many = options.input is not None and (options.input.is_dir() or options.input.suffix == ".jsonl")
    _check(options, many)
    console = Console(highlight=False, soft_wrap=True)
    return _answer_many(options, console) if many else _answer_one(options, console)


def _check(options: Any, many: bool) -> None:
    """Refuses what cannot work before anything is loaded."""
    if options.say is not None and not options.say.strip():
        raise UserError("--say is empty: write what the user says")
    if options.input is not None and not options.input.exists():
        raise UserError(f"no recording at {options.input}")
    if options.extra_seconds is not None and not 0.0 <= options.extra_seconds <= MAX_EXTRA_SECONDS:
        raise UserError(f"--extra_seconds must be between 0 and {MAX_EXTRA_SECONDS:.0f}, not {options.extra_seconds}")
    if options.slots < 1:
        raise UserError(f"--slots must be at least 1, not {options.slots}")
    if many:
        for name in ("resume_session", "save_session"):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} is for one recording, and {options.input} stands for many")
        if options.out.exists() and not options.out.is_dir():
            raise UserError(f"{options.input} stands for many recordings, so --out is a folder, not {options.out}")
        return
    if options.resume_session is not None and options.no_greeting:
        raise UserError("a conversation that goes on has begun already: --resume_session or --no_greeting, not both")
    if options.resume_session is not None and not (options.prompt_text is None and options.prompt_voice is None):
        raise UserError("a conversation that goes on has begun already: --resume_session or a prompt, not both")
    if options.out.suffix not in (".wav", ".flac"):
        raise UserError(f"--out must end in .wav or .flac: {options.out}")
    if options.resume_session is not None and not options.resume_session.is_file():
        raise UserError(f"no saved conversation at {options.resume_session}")
    _check_written(options)


def _check_written(options: Any) -> None:
    """Refuses files that cannot be written, that would replace one another, or what the conversation is made of."""
    written = {"--out": options.out, "the words beside --out": options.out.with_suffix(".json")}
    written |= {"--save_session": options.save_session} if options.save_session is not None else {}
    read = {f"--{name}": getattr(options, name) for name in ("input", "prompt_voice", "resume_session")}
    taken = {path.resolve(): name for name, path in read.items() if path is not None}
    if options.save_session is not None and options.resume_session is not None:
        taken.pop(options.save_session.resolve(), None)  # the same conversation, which has gone on
    for name, path in written.items():
        if not path.absolute().parent.is_dir():
            raise UserError(f"no folder at {path.absolute().parent}: make it first")
        if path.is_dir():
            raise UserError(f"{path} is a folder, and a file is to be written there")
        if (other := taken.setdefault(path.resolve(), name)) != name:
            raise UserError(f"{path} is {other} and {name} too: choose another name for one of them")
        if path.exists() and not options.overwrite:
            raise UserError(f"{path} is there already; choose another name, or pass --overwrite to replace it")


def _answer_one(options: Any, console: Console) -> int:
    samples = _said(options) if options.input is None else _user(options.input, options, console)
    # PyTorch is imported only now: a mistyped flag must not wait for it.
    speaker, sampling = open_speaker(options, console)
    wait = _wait(options, speaker)
    samples = _with_silence(samples, options, speaker)
    from ttt_moshi.inference import Question, Slots, answer, load_session, save_session

    start = open_prompt(options, speaker, sampling)
    if options.resume_session is not None:
        start = load_session(options.resume_session, speaker.state_id)
        if options.seed not in (0, start.seed):
            raise UserError(
                f"this conversation has the seed {start.seed} and keeps it: leave --seed {options.seed} out"
            )
        options.seed = start.seed
    name = "say" if options.input is None else options.input.name
    question = Question(name, samples, options.seed, start, not options.no_greeting, wait=wait)
    begun = time.perf_counter()
    watched = options.save_session is not None
    with Slots(speaker, 1, sampling, watched) as slots, progress_bar("talking", "elements") as advance:
        frames, done = math.ceil(len(samples) / slots.frame_size), 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            advance(min(done, frames), frames)  # a translation takes as long as it takes

        (found,) = answer(slots, [question], keep_end=options.save_session is not None, on_tick=tick)
        end = None if found.end is None else replace(found.end, memory=slots.memory(0))
        rate = slots.sample_rate
    if found.failure is not None:
        raise UserError(found.failure)
    if found.unfinished:
        console.print(NOT_FINISHED.format(name), markup=False)
    said = _words(found, speaker)
    samples = _as_long(samples, len(found.samples))
    _write_conversation(options.out, found, said, samples, rate, speaker)
    if end is not None:
        save_session(end, speaker.state_id, options.save_session)
    seconds = time.perf_counter() - begun
    what = "Moshi left, the user right" if speaker.speaks else "what was heard"
    console.print(f"{options.out}: {len(samples) / rate:.1f} s in {seconds:.1f} s ({what})")
    text = " ".join(word.text for word in said) or f"({'Moshi said' if speaker.speaks else 'it wrote'} no word)"
    console.print(f"{options.out.with_suffix('.json')}: {text}", markup=False)
    if end is not None:
        console.print(f"conversation saved: go on with --resume_session {options.save_session}")
    return 0


def _answer_many(options: Any, console: Console) -> int:
    recordings = _recordings(options.input)
    ready = [name for name in recordings if (options.out / name / "output.json").exists()]
    if ready and not options.overwrite:
        console.print(f"{len(ready)} of {len(recordings)} are there already in {options.out}", markup=False)
    speaker, sampling = open_speaker(options, console)
    from ttt_moshi.inference.driver import Driver, Item

    start, wait = open_prompt(options, speaker, sampling), _wait(options, speaker)
    driver = Driver(speaker, sampling, options.slots, options.seed, start, not options.no_greeting, wait)

    def read(path: Path) -> Any:
        return _with_silence(_user(path, options, console), options, speaker)

    items = [Item(name, partial(read, path)) for name, path in recordings.items()]
    total = len(recordings) - (0 if options.overwrite else len(ready))
    outcomes: list[bool] = []
    with progress_bar("talking", "elements") as bar:

        def done(name: str, failure: str | None) -> None:
            outcomes.append(failure is None)
            if failure is not None:
                console.print(f"{name}: {failure}", markup=False)
            bar(len(outcomes), total)

        def unfinished(name: str) -> None:
            console.print(NOT_FINISHED.format(name), markup=False)

        driver.converse(items, options.out, options.overwrite, done, on_unfinished=unfinished)
    failures = len(outcomes) - sum(outcomes)
    console.print(f"{options.out}: {sum(outcomes)} conversations written, {failures} failed", markup=False)
    return 1 if failures else 0


def _recordings(source: Path) -> dict[str, Path]:
    """Names of conversations and the recordings they answer, sorted."""
    from ttt_moshi.data.audio import AUDIO_SUFFIXES

    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    else:
        paths = []
        try:
            lines = read_text(source, encoding="utf-8-sig").split("\n")  # a name may hold other ends of lines
        except UnicodeDecodeError as error:
            raise UserError(f"{source} is not UTF-8: {error}") from None
        for number, line in enumerate(lines, start=1):
            try:
                paths += [source.parent / json.loads(line)["path"]] if line.strip() else []
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f'{source} line {number} is not an object like {{"path": "user.wav"}}') from error
        if missing := [path for path in paths if not path.is_file()]:
            raise UserError(f"no recording at {missing[0]}, which {source} names")
    if not paths:
        raise UserError(f"{source} names no recordings ({', '.join(AUDIO_SUFFIXES)})")
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in (".", ".."):
            raise UserError(f"{path} would be written beside {path.stem}, not in a folder of its own: rename it")
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path} would both be written to {path.stem}: rename one of them")
        found[path.stem] = path
    return found


def _user(path: Path, options: Any, console: Console) -> Any:
    """The user's samples, a tensor; says so when the other channel is the one with a voice.

    Raises:
        UserError: no audio.
    """
    import torch

    from ttt_moshi.data.audio import read_audio

    channels = read_audio(path)
    if not channels.size:
        raise UserError(f"{path} holds no audio")
    index = 0 if options.channel == "left" else -1
    user = channels[index]
    if len(channels) == 2 and _silent(user) and not _silent(channels[-1 - index]):
        other = "right" if options.channel == "left" else "left"
        console.print(
            f"warning: {path}: the {options.channel} channel is silent and the {other} one is not; if that is the "
            f"user's voice, pass --channel {other}",
            markup=False,
        )
    return torch.from_numpy(user)


def _said(options: Any) -> Any:
    """What the user says in text, as samples, a tensor. Raises UserError."""
    import torch

    from ttt_moshi.synthetic.espeak import Voice, speak

    return torch.from_numpy(speak(options.say, Voice(SAY_VOICE)).samples)


def _with_silence(samples: Any, options: Any, speaker: Speaker) -> Any:
    """The user's samples with the silence after them, in which the answer, or what is left to be written, comes."""
    import torch

    from ttt_moshi.frames import SAMPLE_RATE, frames_to_seconds

    extra = options.extra_seconds
    if _wait(options, speaker) is not None:
        extra = 0.0
    elif extra is None and not speaker.speaks:
        extra = frames_to_seconds(speaker.delay) + WRITING_SECONDS
    elif extra is None:
        extra = 0.0 if options.say is None else SAY_EXTRA_SECONDS
    return torch.nn.functional.pad(samples, (0, round(extra * SAMPLE_RATE)))


def _wait(options: Any, speaker: Speaker) -> int | None:
    """Frames in which a translation may be finished, after the model is told that its input has ended; None where it is
    not told: of other models, and where the conversation is to go on another day."""
    from ttt_moshi.frames import seconds_to_frames

    if not speaker.translates or options.save_session is not None:
        return None
    return seconds_to_frames(TRANSLATION_SECONDS if options.extra_seconds is None else options.extra_seconds)


def _as_long(samples: Any, length: int) -> Any:
    """The user's samples with silence after them, if what Moshi said is longer."""
    import torch

    return torch.nn.functional.pad(samples, (0, max(0, length - len(samples))))


def _silent(samples: Any) -> bool:
    from ttt_moshi.inference.slots import SILENCE

    return bool(abs(samples).max() < SILENCE)


def _words(found: Answer, speaker: Speaker) -> list[Any]:
    from ttt_moshi.frames import FRAME_RATE
    from ttt_moshi.inference import words

    return words(found.pieces, FRAME_RATE, speaker.delay)


def _write_conversation(
    path: Path, found: Answer, said: list[Any], user: Tensor, sample_rate: int, speaker: Speaker
) -> None:
    """The stereo file and Moshi's words beside it; or what was heard, and the words that were written of it."""
    import torch

    from ttt_moshi.inference.driver import write_audio, write_words

    write_audio(path, torch.stack([found.samples, user], dim=1) if speaker.speaks else user, sample_rate)
    write_words(path.with_suffix(".json"), said)
