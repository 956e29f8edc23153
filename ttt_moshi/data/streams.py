"""Long recordings: every batch row walks through one recording, clip after clip, and then begins another."""

from __future__ import annotations

import functools
import heapq
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ttt_moshi.data.batch import Batch
from ttt_moshi.data.corpus import Clip, Corpus
from ttt_moshi.data.loader import pick_source, shuffled
from ttt_moshi.data.prefetch import Prefetch
from ttt_moshi.data.sources import Recording


@dataclass
class StreamBatch(Batch):
    """Clips that continue what their rows held a step before, except where a recording starts."""

    starts: torch.Tensor
    """bool `[B]`: the clip begins a recording, so whatever the row carries must be reset before it"""
    positions: torch.Tensor
    """int64 `[B]`: the frame of the recording that the clip begins with"""


class StreamLoader:
    """Clips for training that carries state, at any position of one endless order.

    Position `step * rows + row` is what `row` reads in `step`. Recordings are handed out one after another, each to the
    row that is free first (ties: the lowest row), in an order that (seed, epoch) alone decide as in `ClipLoader`;
    weights count recordings. So a row has no gaps, and the whole assignment is a pure function of seed and position: it
    knows nothing of ranks, batch sizes or earlier calls.

    Args:
        rows: rows of all processes together, which is what one step reads.
    """

    def __init__(self, corpus: Corpus, *, rows: int, seed: int, shuffle: bool):
        self._corpus = corpus
        self._rows = rows
        self._seed = seed
        self._shuffle = shuffle
        self._weights = [source.weight for source in corpus.sources]
        # Two epochs of every source: rows are not at the same place.
        self._order = functools.lru_cache(maxsize=2 * len(corpus.sources))(self._make_order)
        self._free = [(0, row) for row in range(rows)]  # a heap of (step, row)
        self._draws = 0
        self._handing_out = threading.Lock()  # batches are read in a background thread too
        self._starts: list[list[int]] = [[] for _ in range(rows)]
        self._recordings: list[list[Recording]] = [[] for _ in range(rows)]
        self._prefetch = Prefetch(self._read)
        self.fingerprint: str = corpus.fingerprint
        self.clips_per_epoch: int = sum(len(corpus.clips(i)) for i in range(len(corpus.sources)))
        """clips of all sources together; so many positions make an epoch"""

    def clip(self, position: int) -> Clip:
        """The clip at a position >= 0."""
        step, row = divmod(position, self._rows)
        self._hand_out_until(step)
        index = bisect_right(self._starts[row], step) - 1
        return Clip(self._recordings[row][index], (step - self._starts[row][index]) * self._corpus.clip_frames)

    def batch(self, cursor: int, size: int) -> StreamBatch:
        """The `size` clips at positions `cursor`, `cursor + 1`, ...

        Raises:
            DataError: a recording or transcript that cannot be used.
        """
        return self._prefetch.take(cursor, size)

    def prefetch(self, cursor: int, size: int) -> None:
        """Begins to read a batch in a background thread; the next call of `batch`, if for the same clips, takes it."""
        self._hand_out_until((cursor + size - 1) // self._rows)
        self._prefetch.begin(cursor, size)

    def close(self) -> None:
        """Ends the background thread, if there is one."""
        self._prefetch.close()

    def _read(self, cursor: int, size: int) -> StreamBatch:
        clips = [self.clip(position) for position in range(cursor, cursor + size)]
        batch = self._corpus.read(clips)
        positions = torch.tensor([clip.start for clip in clips])
        # Given frames are those of the recording: delayed codes of the last ones are predicted in a later clip.
        given = torch.tensor([clip.recording.prefix_frames for clip in clips])
        return StreamBatch(batch.codes, batch.sample_ids, given, batch.valid_frames, positions == 0, positions)

    def _hand_out_until(self, step: int) -> None:
        """Gives recordings to rows until every row has something to read in `step`."""
        with self._handing_out:
            while self._free[0][0] <= step:
                start, row = self._free[0]
                recording = self._recording(self._draws)
                self._draws += 1
                self._starts[row].append(start)
                self._recordings[row].append(recording)
                heapq.heapreplace(self._free, (start - (-recording.frames // self._corpus.clip_frames), row))

    def _recording(self, draw: int) -> Recording:
        source, turn = pick_source(self._weights, draw)
        epoch, place = divmod(turn, len(self._corpus.sources[source].recordings))
        return self._corpus.sources[source].recordings[self._order(source, epoch)[place]]

    def _make_order(self, source: int, epoch: int) -> Sequence[int]:
        recordings = self._corpus.sources[source].recordings
        if not self._shuffle:
            return range(len(recordings))
        return shuffled([recording.id for recording in recordings], self._seed, epoch)
