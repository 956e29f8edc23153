"""From examples to tokens: sound files through the codec, joined, with text and user streams added.

The modes of the two streams that an audio-only benchmark does not have are part of every result. By default the text is
absent (-1 everywhere, which training shows the model often) and the user is digital silence as Mimi encodes it; code 0
in all codebooks would be a random sound.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import blake3
import numpy as np
import torch
from safetensors.torch import load, save

from ttt_moshi.data import Codec, CodeCache
from ttt_moshi.data.audio import read_blocks, read_info
from ttt_moshi.data.interleaver import ABSENT, MOSHI_STYLE, TextStyle, text_row
from ttt_moshi.data.transcripts import read_transcript
from ttt_moshi.data.unspaced import Tokenizer
from ttt_moshi.evaluation.errors import EvaluationError, writing
from ttt_moshi.evaluation.examples import Example, Segment, Source
from ttt_moshi.evaluation.scoring.cache_files import CorruptFileError, load_whole
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.streams import TextMode, UserMode
from ttt_moshi.files import write_atomically
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE

_log = logging.getLogger(__name__)


class Recordings:
    """Encodes what examples name, each recording once ever.

    Args:
        codec: the language model's codec.
        cache_dir: folder for codes.
        text: `absent`; `pad` (PAD everywhere, which tells the model that Moshi is silent: for ablation); `given` (from
            the example's transcript); `sampled` (the model writes it while it listens; absent in the tokens made here).
        user: `silence`; `absent`; `natural` (the right channel of stereo recordings).
        tokenizer: needed by `given`.
        style: how the model's text stream is written.
    """

    def __init__(
        self,
        codec: Codec,
        cache_dir: Path,
        text: TextMode = "absent",
        user: UserMode = "silence",
        tokenizer: Tokenizer | None = None,
        style: TextStyle = MOSHI_STYLE,
    ):
        self.codec, self.text, self.user = codec, text, user
        self._cache_dir = cache_dir
        self._cache = CodeCache(cache_dir, codec)
        self._tokenizer, self._style = tokenizer, style
        self._digests: dict[Path, str] = {}
        self._whole_files: dict[Source, Path | None] = {}

    def prepare(self, examples: Sequence[Example], progress: Callable[[int, int], None], ranks: Ranks) -> None:
        """Encodes what the examples need and is not kept yet, each rank its share."""
        sources = list(dict.fromkeys(piece.source for example in examples for piece in example.pieces))
        ranks.together(lambda: self._encode(ranks.share(sources), progress))

    def _encode(self, sources: list[Source], progress: Callable[[int, int], None]) -> None:
        files = {source: self._whole_file(source) for source in sources}
        derived = [source for source, file in files.items() if file is None]
        whole = [file for file in files.values() if file is not None]
        self._cache.fill(whole, lambda done, _: progress(done, len(sources)))
        for number, source in enumerate(derived):
            self.sides(source)
            progress(len(whole) + number + 1, len(sources))

    def sides(self, source: Source) -> np.ndarray:
        """Codes [sides, K, T] of a source: Moshi's side, and in the mode `natural` the user's."""
        file = self._whole_file(source)
        if file is not None:
            return self._cache.codes(file).numpy()
        return self._derived(source, mono=self.user != "natural")

    def _whole_file(self, source: Source) -> Path | None:
        """The one sound file that a source is, with the channels that are wanted."""
        if source not in self._whole_files:
            self._whole_files[source] = self._find_whole_file(source)
        return self._whole_files[source]

    def _find_whole_file(self, source: Source) -> Path | None:
        channels = {read_info(segment.path).channels for segment in source.segments}
        first = source.segments[0]
        if self.user == "natural" and channels != {2}:
            raise EvaluationError(
                f"{first.path} is not stereo, so it has no user side; choose `--user silence` or `absent`"
            )
        whole = len(source.segments) == 1 and first.end_sec is None and not first.start_sec
        return first.path if whole and (self.user == "natural" or channels == {1}) else None

    def tokens(self, example: Example) -> np.ndarray:
        """int32 [1 + 2K, T]: text, Moshi's codes, the user's codes."""
        parts = [self.sides(piece.source)[..., piece.start : piece.stop] for piece in example.pieces]
        sides = np.concatenate(parts, axis=-1).astype(np.int32)
        frames = sides.shape[-1]
        if not frames:
            raise EvaluationError(f"{example.id} has no frames to score")
        moshi = sides[0]
        if self.user == "natural":
            user = sides[1]
        elif self.user == "silence":
            user = self.codec.silence(0, frames).numpy().astype(np.int32)
        else:
            user = np.full_like(moshi, ABSENT)
        return np.concatenate([self._text(example, frames)[None], moshi, user])

    def digest(self, examples: list[Example]) -> str:
        """Identity of a data set: ids and what the files hold, wherever they lie."""
        facts = []
        for example in examples:
            pieces = [
                [[self._file_digest(s.path), s.start_sec, s.end_sec] for s in piece.source.segments]
                + [piece.start, piece.stop]
                for piece in example.pieces
            ]
            fact = [example.id, pieces]
            if self.text == "given" and example.transcript is not None:
                fact.append(self._file_digest(example.transcript))
            facts.append(fact)
        return blake3.blake3(json.dumps(facts).encode()).hexdigest()

    def _text(self, example: Example, frames: int) -> np.ndarray:
        if self.text in ("absent", "sampled"):
            return np.full(frames, ABSENT, np.int32)
        if self.text == "pad":
            return np.full(frames, self._style.pad, np.int32)
        if self._tokenizer is None or example.transcript is None:
            raise EvaluationError(
                f"`--text given` needs a transcript with word times beside every recording; {example.id} has none"
            )
        start = example.transcript_start
        words = read_transcript(example.transcript).words
        return text_row(words, self._tokenizer, start + frames, self._style)[start:]

    def _derived(self, source: Source, mono: bool) -> np.ndarray:
        """Codes of parts of files, end to end, as one recording; kept under a digest of everything they depend on."""
        facts = {
            "codec": self.codec.fingerprint,
            "mono": mono,
            "segments": [[self._file_digest(s.path), s.start_sec, s.end_sec] for s in source.segments],
        }
        name = blake3.blake3(json.dumps(facts).encode()).hexdigest()[:32]
        path = self._cache_dir / f"joined-{name}.safetensors"
        if path.exists():
            try:
                return _read_joined(path, name)
            except CorruptFileError as problem:
                _log.warning("rebuilding %s: %s", path, problem)
        codes = self.codec.encode(_joined_blocks(source, mono), 1 if mono else 2).contiguous()
        with writing(path):
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save({"codes": codes, "digest": _seal(name, codes)}))
        return codes.numpy()

    def _file_digest(self, path: Path) -> str:
        if path not in self._digests:
            if not path.is_file():
                raise EvaluationError(f"no file at {path}")
            self._digests[path] = blake3.blake3().update_mmap(path).hexdigest()
        return self._digests[path]


def _read_joined(path: Path, name: str) -> np.ndarray:
    tensors = load_whole(path, load)
    if set(tensors) != {"codes", "digest"} or not torch.equal(tensors["digest"], _seal(name, tensors["codes"])):
        raise CorruptFileError("its digest does not fit its content")
    return tensors["codes"].numpy()


def _seal(name: str, codes: torch.Tensor) -> torch.Tensor:
    """uint8 [32]: a digest of everything that a file of joined codes stands for."""
    digest = blake3.blake3(f"{name} {codes.dtype} {tuple(codes.shape)}".encode())
    digest.update(codes.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def count_frames(example: Example) -> int:
    """Length of an example, from the headers of its audio files alone."""
    return sum(len(range(*slice(p.start, p.stop).indices(_frames(p.source)))) for p in example.pieces)


def _frames(source: Source) -> int:
    """Length of a source's codes."""
    samples = 0
    for segment in source.segments:
        first, last = _span(segment, read_info(segment.path).samples_24k)
        samples += max(0, last - first)
    return -(-samples // FRAME_SIZE)


def _span(segment: Segment, samples: int) -> tuple[int, int]:
    """First sample and the one after the last, at 24 kHz, of a segment of a file that has so many."""
    last = samples if segment.end_sec is None else min(samples, round(segment.end_sec * SAMPLE_RATE))
    return round(segment.start_sec * SAMPLE_RATE), last


def _joined_blocks(source: Source, mono: bool) -> Iterator[np.ndarray]:
    for segment in source.segments:
        first, last = _span(segment, read_info(segment.path).samples_24k)
        position = 0
        for block in read_blocks(segment.path):
            part = block[:, max(0, first - position) : max(0, last - position)]
            position += block.shape[1]
            if part.shape[1]:
                yield part.mean(axis=0, keepdims=True) if mono else part
            if position >= last:
                break


def as_batch(sequences: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences [K, T_i] as codes int64 [B, K, max T], padded on the right with -1, and their lengths int64 [B]."""
    frames = torch.tensor([s.shape[-1] for s in sequences])
    codes = torch.full((len(sequences), len(sequences[0]), int(frames.max())), ABSENT)
    for row, sequence in zip(codes, sequences, strict=True):
        row[:, : sequence.shape[-1]] = torch.from_numpy(sequence.astype(np.int64))
    return codes, frames
