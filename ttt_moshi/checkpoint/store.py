"""The checkpoint store: what training, evaluation and tools call."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotFinished
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.commit import clear, leave_branch, log_event, set_aside, sweep
from ttt_moshi.checkpoint.coordination import Coordinator
from ttt_moshi.checkpoint.errors import CheckpointError, LostLock, SaveFailed
from ttt_moshi.checkpoint.export import Export, plan_exports
from ttt_moshi.checkpoint.files import Files, replace_file
from ttt_moshi.checkpoint.image import Image, shard_plan
from ttt_moshi.checkpoint.listing import newest_valid
from ttt_moshi.checkpoint.lock import WriterLock
from ttt_moshi.checkpoint.manifest import canonical, read_committed
from ttt_moshi.checkpoint.mirror import Mirror
from ttt_moshi.checkpoint.restore import Loaded, Loader
from ttt_moshi.checkpoint.retention import Retention, known_metrics, prune
from ttt_moshi.checkpoint.rows import Rows, rows_of
from ttt_moshi.checkpoint.saving import Job, Saved, Saver, check_room
from ttt_moshi.checkpoint.sidecars import read_measured, set_pinned, write_measured

KINDS = ("adapters", "full")
_log = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints of one run under `root`. All ranks construct one and make the same calls in the same order.

    Constructing touches nothing on disk; `open` makes this process the folder's only writer. With several ranks, the
    messages between them go through `coordinator`, by default the store of the default process group; `timeout` is the
    longest that one waits for another, for the disk, or at the end for the mirror, in seconds. `mirror` is an fsspec
    URL to which every committed checkpoint is copied in the background.
    """

    def __init__(
        self,
        root: Path | str,
        rank: int = 0,
        world_size: int = 1,
        *,
        coordinator: dist.Store | None = None,
        retention: Retention | None = None,
        mirror: str | None = None,
        timeout: float = 1800.0,
        log: Callable[[str], None] = _log.warning,
        files: Files | None = None,
    ):
        self.root, self.rank, self.world_size = Path(root).absolute(), rank, world_size
        self._files, self._log, self._retention = files or Files(), log, retention or Retention()
        self._coordinator = Coordinator(coordinator, rank, world_size, str(self.root), timeout)
        self._claimed = False
        self._lock: WriterLock | None = None  # on rank 0, while claimed
        self._saver: Saver | None = None
        self._image: tuple[object, Image] | None = None
        self._background: ThreadPoolExecutor | None = None
        self._pending: Future[Saved] | None = None
        self._saving = -1  # the step of the pending save
        self._tidied: Future[None] | None = None
        self._timeout = timeout
        self._mirror = Mirror(mirror, log) if mirror is not None and rank == 0 else None
        self._parent: dict[str, Any] | None = None
        self._resumed_from: set[int] = set()
        self._verified: set[tuple[int, str]] = set()  # (step, state id) of what was read back since it was saved
        self._warned = False  # that no checkpoint has the metric that is to keep the best

    # Looking, which anybody may do at any time

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending. Contents are not looked at."""
        return layout.committed_steps(self._files, self.root)

    def path(self, step: int) -> Path:
        """Folder of a committed step."""
        return self.root / layout.checkpoint_name(step)

    def newest_valid(self, before: int | None = None) -> int | None:
        """The newest step (below `before`) whose manifest, sizes, headers and small files are as saved, or None.

        What is corrupt or foreign is passed over, with a line in the log. Raises UnreadableCheckpoint.
        """
        return newest_valid(self.root, self._log, self._files, before)

    # Writing

    def claim(self) -> None:
        """Become the folder's only writer and do nothing else: take the lock, making the folder if needed.

        A run claims its folder first, before it reads, moves or deletes anything in it; `close` gives the claim back,
        and the folder with it if it was made for nothing. Raises CheckpointError if another process writes here.
        """
        if self._claimed:
            return
        number = self._coordinator.next_round()
        with self._coordinator.broadcast_errors(number):
            if self.rank == 0:
                self._lock = WriterLock(self._files, self.root)
            self._coordinator.share(number, "claimed", True)
        self._claimed = True

    def clear(self) -> None:
        """Delete everything in the folder but the lock: a run that replaces another calls it after `claim`."""
        self.claim()
        number = self._next_round()
        with self._coordinator.broadcast_errors(number):
            if self._lock is not None:
                self._lock.check()
                clear(self._files, self.root)
            self._coordinator.share(number, "cleared", True)

    def open(self) -> list[str]:
        """Claim the folder and sweep what a crash left, ready to save. What was swept, in words.

        Raises CheckpointError if another process writes here.
        """
        if self._saver is not None:
            return []
        self.claim()
        number = self._coordinator.next_round()
        with self._coordinator.broadcast_errors(number):
            swept = [] if self._lock is None else sweep(self._files, self.root)
            swept = self._coordinator.share(number, "open", swept)
        self._saver = Saver(self._files, self.root, self._coordinator, self._lock)
        # One thread: saves of one rank never overlap. Leaving the interpreter waits for it.
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-save")
        return swept

    def reserve(self, tensors: Mapping[str, Tensor], exported_bytes: int = 0, reclaimed: int = 0) -> int:
        """Lay out and touch the staging image before the first save needs it; bytes that one save will write.

        `exported_bytes` is the size of what will be exported, `reclaimed` of what will be deleted before. Raises
        CheckpointError if the disk has no room for one checkpoint, and warns if it has none for as many as retention
        keeps and the one being written.
        """
        image = self._staging({name: rows_of(name, tensor, self.rank) for name, tensor in tensors.items()})
        size = image.layout.size * self.world_size + exported_bytes
        self.claim()
        free, copies = self._files.free_bytes(self.root) + reclaimed, (self._retention.last or 1) + 1
        check_room(size, free, self.root, "a checkpoint")
        missing = size * (copies - len(self.steps())) - free
        if missing > 0:
            self._log(f"{self.root} lacks {missing / 1e9:.2f} GB for {copies} checkpoints of {size / 1e9:.2f} GB each")
        return size

    def _staging(self, rows: Mapping[str, Rows]) -> Image:
        key = tuple(sorted((n, str(r.local.dtype), r.shape, r.start, r.stop, r.is_writer) for n, r in rows.items()))
        if self._image is None or self._image[0] != key:
            self._image = None
            self._image = (key, Image(shard_plan(rows), any(r.local.is_cuda for r in rows.values())))
        return self._image[1]

    def save(
        self,
        step: int,
        *,
        kind: str,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        rank_state: Any = None,
        exports: Mapping[str, Mapping[str, Export]] | None = None,
        documents: Mapping[str, Mapping[str, Any]] | None = None,
        metrics: Mapping[str, float] | None = None,
        info: Mapping[str, Any] | None = None,
        pinned: bool = False,
    ) -> None:
        """Begin to save `step` and return once its state is staged; it is durable and committed later.

        After `wait_staged` the tensors may change. `poll`, `wait` and the next `save` raise what went wrong in the
        background, on any rank; earlier checkpoints are untouched by a failure. If the previous save is still being
        written, this waits for it. The arguments:

        tensors: fp32 masters, moments, carried state; DTensors sharded by rows, or plain ones equal on all ranks
        state: JSON, equal on all ranks; rank_state: JSON of this rank, such as random generators
        exports: file name under consolidated/ -> tensor name -> Export
        documents: path in the checkpoint -> JSON content
        metrics, info: recorded in the manifest, no part of the state's identity; pinned: never pruned

        Non-finite tensors are saved as `unhealthy_<step>`, which nothing resumes from or counts.
        """
        begin = time.perf_counter()
        self.open()
        assert self._saver is not None and self._background is not None
        if self._pending is not None and not self._pending.done():
            self._log(f"training waits for the save of step {step}: the one before is still being written")
        self.wait()
        if self._tidied is not None and self._tidied.done():
            self._tidied.result()
        if step < 0 or kind not in KINDS:
            raise CheckpointError(f"a save needs a step of at least 0 and a kind of {KINDS}, not {step} and {kind!r}")
        if not tensors or "" in tensors:
            raise CheckpointError("a checkpoint without tensors, or with a nameless one, cannot be resumed from")
        rows = {name: rows_of(name, tensor, self.rank) for name, tensor in tensors.items()}
        image = self._staging(rows)
        job = Job(
            step=step,
            kind=kind,
            image=image,
            rows=rows,
            exports=plan_exports(exports or {}, rows, self.rank),
            documents={path: _document(path, content) for path, content in (documents or {}).items()},
            state=canonical(state, "state"),
            rank_state=json.loads(canonical(rank_state, "rank_state")),
            metrics={name: float(value) if math.isfinite(value) else None for name, value in (metrics or {}).items()},
            info={**json.loads(canonical(info or {}, "info")), "pinned": pinned},
            parent=self._parent,
            begun=begin,
        )
        number = self._coordinator.next_round()
        staging = time.perf_counter()

        def copied() -> None:
            now = time.perf_counter()
            job.seconds |= {"stage": now - staging, "blocked": now - begin}

        image.empty()
        try:
            self._pending, self._saving = self._background.submit(self._saver.run, job, number), step
            if self.rank == 0:
                self._tidied = self._background.submit(self._tidy, self._pending)
            image.stage(rows, copied)
        except BaseException:
            image.fail()
            raise

    def _tidy(self, finished: Future[Saved]) -> None:
        """Pointer, journal and retention: after a commit, in the background, and never able to spoil it."""
        if finished.exception() is not None:
            return
        saved = finished.result()
        assert self._lock is not None
        try:
            self._lock.check()
            if saved.healthy:
                self._point_to_newest()
            log_event(self._files, self.root, "saved", step=saved.step, state_id=saved.state_id, healthy=saved.healthy)
            if self._mirror is not None:
                self._mirror.submit(saved.path)
            if saved.healthy:
                self._prune()
        except (OSError, CheckpointError) as error:
            self._log(f"step {saved.step} is saved, but tidying up after it failed: {error}")

    def _prune(self) -> None:
        known = known_metrics(self.root, self._files)
        if self._retention.best and self._retention.metric not in known and not self._warned:
            self._warned = True
            self._log(f"no checkpoint has the metric {self._retention.metric!r} yet; they have: {', '.join(known)}")
        protected = dict.fromkeys(self._resumed_from, "the run was resumed from it")
        if self._mirror is not None:
            protected |= dict.fromkeys(self._mirror.queued(), "it waits to be copied to the mirror")
        decisions = prune(
            self.root, self._retention, False, protected, self._files, verified=self._verified, log=self._log
        )
        for item in decisions:
            if not item.keep:
                log_event(self._files, self.root, "deleted", step=item.step, reason=item.reason)

    def _tidy_after_mirror(self) -> None:
        """Delete what was kept only until it was copied."""
        if self._lock is None or self._saver is None:
            return
        try:
            self._lock.check()
            self._prune()
        except (OSError, CheckpointError) as error:
            self._log(f"tidying up after the mirror failed: {error}")

    def wait_staged(self) -> None:
        """Call before the optimizer changes the tensors: on a GPU the staging copies may still be running."""
        if self._image is not None:
            self._image[1].wait_device()

    def poll(self) -> Saved | None:
        """The save that has finished since the last call, or None. Raises CheckpointError if it failed, on any rank."""
        return self.wait() if self._pending is not None and self._pending.done() else None

    def wait(self) -> Saved | None:
        """Block until the last save is committed; retention may still be deleting. Returns and raises as `poll`."""
        if self._pending is None:
            return None
        try:
            error = self._pending.exception(self._timeout)
        except NotFinished:
            raise CheckpointError(
                f"saving step {self._saving} has not finished within {self._timeout:.0f} s (patience_minutes): "
                f"the disk of {self.root} may hang"
            ) from None
        pending, self._pending = self._pending, None
        if isinstance(error, LostLock):
            raise error
        if error is not None:
            message = f"saving step {self._saving} failed, earlier checkpoints are intact: {error}"
            raise SaveFailed(message, self._saving) from error
        saved = pending.result()
        self._parent = {"step": saved.step, "state_id": saved.state_id}
        return saved

    def close(self) -> None:
        """Wait for the last save, for retention and the mirror, then let others write. Raises as `wait`."""
        try:
            self.wait()
            if self._tidied is not None:
                self._tidied.result(self._timeout)
        finally:
            if self._background is not None:
                self._background.shutdown(wait=self._pending is None)  # a disk that hangs is not waited for again
            if self._mirror is not None:
                self._mirror.close(self._timeout)
                self._tidy_after_mirror()
            self._coordinator.close()
            if self._lock is not None:
                self._lock.release()
            self._lock = self._saver = self._background = None
            self._claimed = False

    def _next_round(self) -> int:
        """Begin an exchange between ranks. Those of a save in the background come first: rounds never overlap."""
        running: list[Future[Any]] = [future for future in (self._pending, self._tidied) if future is not None]
        wait_for(running, self._timeout)
        return self._coordinator.next_round()

    def __enter__(self) -> CheckpointStore:
        try:
            self.open()
        except BaseException:
            self.close()  # nobody else would give the claim back
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def leave_branch(self, step: int) -> list[Path]:
        """Move checkpoints later than `step` aside before the run goes on from it; where they are now (rank 0)."""
        self.open()
        number = self._next_round()
        with self._coordinator.broadcast_errors(number):
            moved = leave_branch(self._files, self.root, step) if self.rank == 0 else []
            if moved:
                write_measured(self._files, self.root, read_measured(self._files, self.root))
            self._coordinator.share(number, "branch", None)
        return moved

    def set_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record what was measured of a committed step, for retention and for people. Rank 0 calls it.

        The values go into a file beside the checkpoints, so that a checkpoint stays what was saved. Raises
        CheckpointError, once they are recorded, if retention is to keep the best by a metric that is still unknown.
        """
        state = read_committed(self.root, step, self._files)["state_id"]
        measured = read_measured(self._files, self.root)
        before, known = measured.get(step, (state, {}))
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        measured[step] = (state, {**(known if before == state else {}), **finite})
        write_measured(self._files, self.root, measured)
        self._retention.check_metric(known_metrics(self.root, self._files))

    def set_unhealthy(self, step: int, reason: str) -> None:
        """Take a committed step for one that nothing resumes from: its state is finite, what it computes is not.

        All ranks call it.
        """
        self.open()
        self.wait()
        number = self._next_round()
        with self._coordinator.broadcast_errors(number):
            if self._lock is not None:
                self._lock.check()
                set_aside(self._files, self.root, layout.checkpoint_name(step), "unhealthy", reason)
                self._point_to_newest()
            self._coordinator.share(number, "unhealthy", True)

    def _point_to_newest(self) -> None:
        """Let LATEST, which people read, name the newest committed checkpoint; none, no LATEST."""
        steps = layout.committed_steps(self._files, self.root)
        if steps:
            name = layout.checkpoint_name(steps[-1])
            replace_file(self._files, self.root / layout.LATEST, f"{name}\n".encode())
        elif layout.LATEST in self._files.names(self.root):
            self._files.remove(self.root / layout.LATEST)

    def log_event(self, event: str, **details: Any) -> None:
        """Add a line to the folder's journal. Rank 0 calls it, as the writer."""
        log_event(self._files, self.root, event, **details)

    def set_pinned(self, step: int, pinned: bool = True) -> None:
        """Keep a step from retention for good, or no longer."""
        set_pinned(self.root, step, pinned, self._files)

    # Reading

    def load(self, step: int = -1, *, tensors: Mapping[str, Tensor], strict: bool = True) -> Loaded:
        """Fill `tensors` in place from `step`, or from the newest checkpoint that verifies for -1. All ranks call it.

        Digests are checked while reading. If the newest checkpoint is corrupt, that is said aloud, and the next older
        one is taken; a store that has claimed the folder then sets the corrupt one aside, and gives up, with nothing
        moved, if a second one is corrupt. What is foreign is passed over and left alone. A named step never gives way
        to another (CorruptCheckpoint, ForeignCheckpoint). `strict` demands equal names, shapes and dtypes (Mismatch).
        Raises UnreadableCheckpoint, with nothing moved, and NoCheckpoint if there is nothing to load.
        """
        self.wait()
        loader = Loader(self._files, self.root, self._coordinator, self._claimed, self._log)
        loaded = loader.run(step, tensors, strict)
        self._parent = {"step": loaded.step, "state_id": loaded.state_id}
        self._resumed_from.add(loaded.step)
        return loaded


def _document(path: str, content: Mapping[str, Any]) -> bytes:
    if path == layout.STATE or path == layout.MANIFEST or path.startswith(("/", ".")) or ".." in path:
        raise CheckpointError(f"a document cannot be written as {path!r}")
    canonical(content, path)
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
