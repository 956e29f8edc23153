"""The order in which clips are visited: a pure function of (seed, epoch, position)."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction

import blake3

from ttt_moshi.data.batch import Batch, empty_clip
from ttt_moshi.data.corpus import Clip, Corpus
from ttt_moshi.data.prefetch import Prefetch


class ClipLoader:
    """Clips for training, at any position of one endless global order.

    A source is visited once per epoch of its own; with `shuffle`, in the order of the BLAKE3 digests of
    (seed, epoch, clip id), which no library version changes. Several sources alternate at fixed places in proportion
    to their weights. Nothing else has a say: not the batch size, the number of processes or earlier calls.
    """

    def __init__(self, corpus: Corpus, *, seed: int, shuffle: bool):
        self._corpus = corpus
        self._seed = seed
        self._shuffle = shuffle
        self._clips = [corpus.clips(i) for i in range(len(corpus.sources))]
        self._weights = [source.weight for source in corpus.sources]
        # Two epochs of every source: a batch may lie across the end of one.
        self._order = functools.lru_cache(maxsize=2 * len(self._clips))(self._make_order)
        self._prefetch = Prefetch(self._read)
        self.fingerprint: str = corpus.fingerprint
        self.clips_per_epoch: int = sum(len(clips) for clips in self._clips)
        """clips of all sources together; so many positions make an epoch"""

    def clip(self, position: int) -> Clip:
        """The clip at a position >= 0."""
        source, draw = pick_source(self._weights, position)
        epoch, place = divmod(draw, len(self._clips[source]))
        return self._clips[source][self._order(source, epoch)[place]]

    def batch(self, cursor: int, size: int) -> Batch:
        """The `size` clips at positions `cursor`, `cursor + 1`, ...

        Raises:
            DataError: a recording or transcript that cannot be used.
        """
        return self._prefetch.take(cursor, size)

    def prefetch(self, cursor: int, size: int) -> None:
        """Begins to read a batch in a background thread; the next call of `batch`, if for the same clips, takes it."""
        self._prefetch.begin(cursor, size)

    def close(self) -> None:
        """Ends the background thread, if there is one."""
        self._prefetch.close()

    def _read(self, cursor: int, size: int) -> Batch:
        return self._corpus.read([self.clip(position) for position in range(cursor, cursor + size)])

    def _make_order(self, source: int, epoch: int) -> Sequence[int]:
        clips = self._clips[source]
        if not self._shuffle:
            return range(len(clips))
        return shuffled([clip.id for clip in clips], self._seed, epoch)


class EvalSet:
    """Every clip of the evaluation data once, always in the same order. Weights have no meaning here.

    Args:
        chosen: ids of the clips that are taken, all for None. Only their recordings are ever read.
    """

    def __init__(self, corpus: Corpus, chosen: Collection[str] | None = None):
        self._corpus = corpus
        self.clips = [
            clip for i in range(len(corpus.sources)) for clip in corpus.clips(i) if chosen is None or clip.id in chosen
        ]
        self.fingerprint: str = corpus.fingerprint
        """of the corpus, which training writes too; of a part of its clips, of that and of their names"""
        if chosen is not None:
            names = " ".join(clip.id for clip in self.clips)
            self.fingerprint = blake3.blake3(f"{corpus.fingerprint} {names}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.clips)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's part, beginning anew with every call.

        Every rank gets the same number of batches of at most `batch_size` clips, since collective operations need
        company: a rank without clips left gets one without audio (`valid_frames` 0, sample id "").

        Raises:
            DataError: a recording or transcript that cannot be used.
        """
        for first in range(0, len(self.clips), batch_size * world_size):
            start = first + rank * batch_size
            mine = self.clips[start : start + batch_size]
            yield self._corpus.read(mine) if mine else empty_clip(self._corpus.streams, self._corpus.clip_frames)


def shuffled(names: Sequence[str], seed: int, epoch: int) -> list[int]:
    """A permutation of the indices of `names`: by the BLAKE3 digests of (seed, epoch, name), equal ones by index."""
    keys = [blake3.blake3(f"{seed} {epoch} {name}".encode()).digest() for name in names]
    return sorted(range(len(names)), key=keys.__getitem__)


def pick_source(weights: Sequence[Fraction], position: int) -> tuple[int, int]:
    """Which source a position of the common order takes, and how many times that source was taken before.

    The first source takes its share of the positions, evenly spread; the others divide what is left in the same way.
    In any stretch from the start a source's count differs from its share by less than the number of sources.
    """
    left = sum(weights, Fraction(0))
    for source, weight in enumerate(weights):
        share = weight / left
        before = _ceil(position * share)
        if _ceil((position + 1) * share) > before:
            return source, before
        position -= before
        left -= weight
    raise AssertionError("the last source takes whatever is left")


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
