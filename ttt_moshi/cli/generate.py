"""Let a checkpoint answer a recording."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.checkpoint_facts import progress_bar
from ttt_moshi.cli.talking import add_options, check_options, open_speaker
from ttt_moshi.errors import UserError

if TYPE_CHECKING:
    from ttt_moshi.inference import Word


def main(argv: list[str]) -> int:
    """`ttt-moshi generate --checkpoint_dir D --input user.wav --out talk.wav`."""
    parser = Parser(
        prog="ttt-moshi generate",
        description="Plays a recording of the user to Moshi, frame by frame, and writes the conversation: a stereo "
        "file with Moshi on the left and the user on the right, and beside it (.json) Moshi's words with their times, "
        "both in the format of training data.",
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="recording of the user: mono, or the right channel of a stereo file"
    )
    parser.add_argument("--out", type=Path, required=True, help="the conversation, a .wav or .flac file")
    parser.add_argument(
        "--resume_session", type=Path, help="go on with a saved conversation: it remembers what was said"
    )
    parser.add_argument("--save_session", type=Path, help="save the conversation at the end, to go on another day")
    add_options(parser)
    options = parser.parse_args(argv)
    check_options(options)
    _check_files(options)
    # PyTorch is imported only now: a mistyped flag must not wait for it.
    from ttt_moshi.data.audio import read_audio

    user = read_audio(options.input)[-1]
    if not user.size:
        raise UserError(f"{options.input} holds no sound")
    speaker, sampling = open_speaker(options)
    console = Console(highlight=False, soft_wrap=True)
    begun = time.perf_counter()
    moshi, said, sample_rate = _converse(speaker, sampling, user, options)
    seconds = time.perf_counter() - begun
    _write(options.out, moshi, user, said, sample_rate)
    text = " ".join(word.text for word in said) or "(Moshi said no word)"
    console.print(f"{options.out}: {len(user) / sample_rate:.1f} s in {seconds:.1f} s (Moshi left, the user right)")
    console.print(f"{options.out.with_suffix('.json')}: {text}", markup=False)
    if options.save_session is not None:
        console.print(f"conversation saved: go on with --resume_session {options.save_session}")
    return 0


def _check_files(options: Any) -> None:
    if not options.input.is_file():
        raise UserError(f"no sound file at {options.input}")
    if options.out.suffix not in (".wav", ".flac"):
        raise UserError(f"--out must end in .wav or .flac: {options.out}")
    for path in (options.out, options.save_session):
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"no folder at {path.absolute().parent}: make it first")
    if options.out.absolute() == options.input.absolute():
        raise UserError("--out would replace the input; choose another name")


def _converse(speaker: Any, sampling: Any, user: Any, options: Any) -> tuple[Any, list[Word], int]:
    """Moshi's samples, as many as the user's; its words; samples per second."""
    import numpy as np
    import torch

    from ttt_moshi.inference import Conversation, load_session, save_session, words

    with Conversation(speaker, sampling) as conversation:
        if options.resume_session is not None:
            load_session(conversation, options.resume_session)
        size = conversation.frame_size
        frames = torch.from_numpy(np.pad(user, (0, -len(user) % size))).split(size)
        replies = []
        with progress_bar("talking", "elements") as advance:
            for done, frame in enumerate(frames, 1):
                reply = conversation.hear(frame)
                if reply is not None:
                    replies.append(reply)
                advance(done, len(frames))
        if options.save_session is not None:
            save_session(conversation, options.save_session)
        late = size * (len(frames) - len(replies))  # what the model's delays hold back at the beginning
        sound = torch.cat([torch.zeros(late), *(reply.samples for reply in replies)])
        pieces = [""] * (len(frames) - len(replies)) + [reply.piece for reply in replies]
        rate = conversation.sample_rate
        return sound[: len(user)].numpy(), words(pieces, rate / size), rate


def _write(path: Path, moshi: Any, user: Any, said: list[Word], sample_rate: int) -> None:
    import numpy as np
    import soundfile

    try:
        soundfile.write(path, np.stack([moshi, user], axis=1).clip(-1.0, 1.0), sample_rate)
    except soundfile.SoundFileError as error:
        path.unlink(missing_ok=True)  # half of a conversation helps nobody
        raise OSError(f"{path} cannot be written, is the disk full? ({error})") from error
    alignments = [[w.text, [round(w.start, 3), round(w.end, 3)], "SPEAKER_MAIN"] for w in said]
    path.with_suffix(".json").write_text(json.dumps({"alignments": alignments}, ensure_ascii=False, indent=1) + "\n")
