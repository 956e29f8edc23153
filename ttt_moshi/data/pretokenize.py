"""A data set of codes alone, from which training needs neither the audio nor the codec nor the transcripts."""

from __future__ import annotations

import json
from pathlib import Path

from ttt_moshi.data.corpus import Corpus, OnRecording
from ttt_moshi.data.encoded import SUFFIX, read_encoded_info, write_encoded
from ttt_moshi.data.errors import DataError
from ttt_moshi.files import write_atomically
from ttt_moshi.frames import frames_to_seconds


def pretokenize(
    corpus: Corpus, out: Path, rank: int = 0, world_size: int = 1, on_recording: OnRecording | None = None
) -> Path:
    """Encodes one rank's part of a data set, as `Corpus.encode_all` does, and writes it as pre-tokenized recordings.

    `out` then holds `codes/*.safetensors`, named by content, and a list for each rank; training reads the folder as a
    whole. A recording whose file is there is not written again. Weights of the data set are left out.

    Returns:
        The list of this part.

    Raises:
        DataError: a recording or transcript that cannot be used.
        OSError: `out` cannot be written.
    """
    corpus.encode_all(rank, world_size, on_recording)
    (out / "codes").mkdir(parents=True, exist_ok=True)
    lines = []
    for recording in corpus.part(rank, world_size):
        path = out / "codes" / f"{corpus.content_of(recording)[:32]}{SUFFIX}"
        if not _is_there(path, recording.frames):
            write_encoded(path, corpus.whole(recording))
        line: dict[str, object] = {
            "path": f"codes/{path.name}", "duration": frames_to_seconds(recording.frames),
        }  # fmt: skip
        if recording.prefix_frames:
            line["prefix_sec"] = frames_to_seconds(recording.prefix_frames)
        lines.append(json.dumps(line) + "\n")
    name = "data.jsonl" if world_size == 1 else f"data-{rank + 1:05}-of-{world_size:05}.jsonl"
    if not lines:
        (out / name).unlink(missing_ok=True)  # a list of nothing is refused by those who read it
        return out / name
    write_atomically(out / name, "".join(lines).encode())
    return out / name


def _is_there(path: Path, frames: int) -> bool:
    try:
        return path.is_file() and read_encoded_info(path).frames == frames
    except DataError:
        return False  # it is made again
