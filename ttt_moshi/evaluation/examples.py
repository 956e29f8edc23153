"""What a task asks to be scored: recordings, parts of them, and joins of such parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Segment:
    """A stretch of one audio file, in seconds; the whole file by default."""

    path: Path
    start_sec: float = 0.0
    end_sec: float | None = None


@dataclass(frozen=True)
class Source:
    """Audio that the codec hears as one recording: segments end to end, so that no join is audible to it."""

    segments: tuple[Segment, ...]

    @classmethod
    def file(cls, path: Path) -> Source:
        return cls((Segment(path),))


@dataclass(frozen=True)
class Piece:
    """Frames [start, stop) of a source's codes; to its end by default."""

    source: Source
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Example:
    """One token sequence to score.

    `id` is stable: it names the example within its task, on every machine and for every checkpoint. `transcript` has
    the word times that the text mode `given` needs; the example begins at their frame `transcript_start`. Its first
    `prefix_frames` are given to the model and not predicted.
    """

    id: str
    pieces: tuple[Piece, ...]
    transcript: Path | None = None
    transcript_start: int = 0
    prefix_frames: int = 0

    @property
    def files(self) -> frozenset[Path]:
        """The audio files that it hears."""
        return frozenset(segment.path for piece in self.pieces for segment in piece.source.segments)

    @classmethod
    def file(cls, id: str, path: Path) -> Example:
        """A whole audio file; a `.json` beside it is its transcript."""
        transcript = path.with_suffix(".json")
        return cls(id, (Piece(Source.file(path)),), transcript if transcript.is_file() else None)
