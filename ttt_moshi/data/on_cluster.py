"""`data annotate`, `prepare` and `encode` over a Ray cluster: a worker does for a file what one process does for it.

All machines see the recordings, and what is made of them, in the same folders. What is there is not done again, so a
call that ended early is continued by the same command, with Ray or without.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ttt_moshi.data.annotate import Annotated, annotate_one, recordings_below
from ttt_moshi.data.cache import CodeCache
from ttt_moshi.data.cluster import Cluster
from ttt_moshi.data.codec import Codec
from ttt_moshi.data.corpus import OnRecording
from ttt_moshi.data.digests import Digests, cache_folder
from ttt_moshi.data.encoded import is_encoded
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.judge import judge_recording
from ttt_moshi.data.prepare import Work
from ttt_moshi.data.prepare_one import Choices, Item, Outcome, prepare_one
from ttt_moshi.data.recognisers import Recogniser
from ttt_moshi.data.sources import Line, listed_lines, open_recording
from ttt_moshi.data.transcripts import transcript_path
from ttt_moshi.frames import seconds_to_frames

_DIED = "the processes that read it died, for lack of memory or of the file"

OpenRecogniser = Callable[[], Recogniser]
OpenCodec = Callable[[], Codec]


def annotate_over(
    cluster: Cluster,
    folder: Path,
    open_recogniser: OpenRecogniser,
    *,
    language: str | None = None,
    channels: tuple[int, ...] | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    on_file: Callable[[str, int, int], None] | None = None,
) -> Iterator[Annotated]:
    """`annotate` by every machine of a cluster; outcomes come as they are finished.

    Args:
        open_recogniser: called in each worker.
        device: what `Cluster.device` said.

    Raises: as `annotate` and `Cluster.spread`.
    """
    files = recordings_below(folder)
    make = partial(_annotator, open_recogniser, folder, language, channels, overwrite)
    for done, (index, outcome) in enumerate(cluster.spread(make, files, [folder], device), start=1):
        name = files[index].relative_to(folder).as_posix()
        if on_file:
            on_file(name, done, len(files))
        yield outcome or Annotated(name, left_out=_DIED)


def _annotator(
    open_recogniser: OpenRecogniser,
    folder: Path,
    language: str | None,
    channels: tuple[int, ...] | None,
    overwrite: bool,
) -> Callable[[Path], Annotated]:
    recogniser = open_recogniser()
    return lambda file: annotate_one(folder, file, recogniser, language, channels, overwrite, lambda _: None)


def prepare_over(cluster: Cluster, work: Work) -> Iterator[tuple[int, Outcome]]:
    """What `prepare` runs, by every machine of a cluster."""
    made = sorted({target.parent for _, target, _ in work})
    for index, outcome in cluster.spread(_preparer, work, made):
        yield index, outcome or Outcome(work[index][0].name, left_out=_DIED, passing=True)


def _preparer() -> Callable[[tuple[Item, Path, Choices]], Outcome]:
    return _prepare


def _prepare(task: tuple[Item, Path, Choices]) -> Outcome:
    """Under a name of its own: a machine that was given up for lost may still be writing."""
    item, target, choices = task
    own = target.with_name(f"{uuid.uuid4().hex}.wav")
    outcome = prepare_one(item, own, choices)
    for made, place in ((own, target), (transcript_path(own), transcript_path(target))):
        if made.is_file():
            made.replace(place)
        else:
            place.unlink(missing_ok=True)
    return outcome


def encode_over(
    cluster: Cluster,
    spec: str,
    open_codec: OpenCodec,
    cache_dir: Path | None = None,
    *,
    device: str = "cpu",
    on_recording: OnRecording | None = None,
) -> int:
    """Makes the codes of a data set in its cache, and remembers the digest, the length and the judgement of each
    recording beside them, by every machine of a cluster. What opens the data set then, finds everything done.

    Args:
        spec: comma-separated jsonl files or folders of them.
        open_codec: called in each worker.
        cache_dir: folder for the codes; None takes the one beside each jsonl file.
        device: what `Cluster.device` said.

    Returns:
        Frames of audio whose codes were there.

    Raises:
        DataError: a line, recording or transcript that cannot be used; the others may be done or not.
    """
    lines = listed_lines(spec)
    caches = sorted({cache_folder(line.jsonl.parent, cache_dir) for line in lines})
    frames = [0 if is_encoded(line.path) else seconds_to_frames(line.duration) for line in lines]
    made = there = 0
    for index, was_made in cluster.spread(partial(_encoder, open_codec, cache_dir), lines, caches, device):
        if was_made is None:
            raise DataError(f"{lines[index].where}: {lines[index].path}: {_DIED}")
        made, there = made + was_made * frames[index], there + (not was_made) * frames[index]
        if on_recording:
            on_recording(lines[index].audio.name, made, sum(frames) - there)
    return there


def _encoder(open_codec: OpenCodec, cache_dir: Path | None) -> Callable[[Line], bool]:
    """What makes the codes of a line's recording, and says whether they were not there."""
    codec = open_codec()
    remembered: dict[Path, Digests] = {}

    def encode(line: Line) -> bool:
        folder = cache_folder(line.jsonl.parent, cache_dir)
        digests = remembered.setdefault(folder, Digests(folder))
        recording = open_recording(line, digests)
        if recording.encoded:
            return False
        judge_recording(recording, digests)
        cache = CodeCache(folder, codec, digests)
        missing = not cache.has(recording.audio)
        cache.codes(recording.audio)
        return missing

    return encode
