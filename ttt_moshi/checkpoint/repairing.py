"""What a person does to a checkpoints folder that no run is writing to: putting it in order, and making room in it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.checking import verify
from ttt_moshi.checkpoint.commit import delete, log_event, set_aside, sweep
from ttt_moshi.checkpoint.errors import CheckpointError, ForeignCheckpoint
from ttt_moshi.checkpoint.files import Files, replace_file
from ttt_moshi.checkpoint.listing import bytes_on_disk, list_folder
from ttt_moshi.checkpoint.lock import WriterLock
from ttt_moshi.checkpoint.retention import ONLY_THE_LINK, PruneStep, Retention, known_metrics, prune
from ttt_moshi.checkpoint.trouble import patiently


def repair(
    root: Path, deep: bool = True, progress: Callable[[int, int], None] | None = None, files: Files | None = None
) -> list[str]:
    """Sweep leftovers, set aside what is corrupt, and point LATEST at the newest that remains; what was done, in words.

    All are verified before the first is moved. What this program did not write is left alone. `progress` is that of
    `verify`, one checkpoint after the other. Raises UnreadableCheckpoint, with nothing moved, and CheckpointError while
    a writer is at work.
    """
    files = files or Files()
    with WriterLock(files, root):
        reports, done = [], []
        for step in layout.committed_steps(files, root):
            try:
                reports.append(verify(root / layout.checkpoint_name(step), deep, progress, files))
            except ForeignCheckpoint:
                continue
        done += sweep(files, root)
        for report in reports:
            if report.corrupt:
                moved = set_aside(files, root, report.path.name, "corrupt", report.text())
                done.append(f"set aside {report.path.name} as {moved.name}: {report.problems[0].what}")
        remaining = [report.path.name for report in reports if not report.corrupt]
        if remaining:
            replace_file(files, root / layout.LATEST, f"{remaining[-1]}\n".encode())
            files.sync_folder(root)
    return done


BESIDE = ("corrupt", "left", "unhealthy", "leftover", "foreign")  # kinds of what lies beside the checkpoints


def make_room(
    root: Path,
    policy: Retention | None,
    also: Collection[str] = (),
    dry_run: bool = False,
    log: Callable[[str], None] = lambda line: None,
    files: Files | None = None,
) -> list[PruneStep]:
    """Delete checkpoints that no rule of `policy` keeps (None: all stay), and the kinds `also` of what lies beside.
    What an earlier deletion left goes in any case.

    The kinds are "corrupt", "left" and "unhealthy" for what was set aside as such, "leftover" of unfinished work, and
    "foreign" for whatever this program did not write. Raises as `prune`, and CheckpointError while a run writes to the
    folder: it has rules of its own.
    """
    unknown = sorted(set(also) - set(BESIDE))
    if unknown:
        raise CheckpointError(f"beside the checkpoints there is {', '.join(BESIDE)}, not {unknown[0]!r}")
    files, decisions = files or Files(), []
    if policy is not None:
        policy.check_metric(known_metrics(root, files))
    with nullcontext() if dry_run else WriterLock(files, root):
        if policy is not None:
            decisions += prune(root, policy, dry_run, files=files, log=log)
        for name in patiently(root, lambda: files.names(root)):
            if name.startswith(layout.TRASH) and "leftover" not in also:
                size = bytes_on_disk(files, root / name)
                decisions.append(PruneStep(name, None, False, "its deletion was not finished", size))
                if not dry_run:
                    delete(files, root, name)
        for record in list_folder(root, files) if also else ():
            name = record["name"]
            kind = layout.aside_reason(name) or record["status"]
            if kind not in also or (layout.step_of(name) is not None and kind == "corrupt"):
                continue  # a corrupt committed name: `repair` sets it aside first, after a second look
            why, size = f"{kind}, as asked for", record.get("bytes", 0)
            if (root / name).is_symlink():
                why, size = f"{why}; {ONLY_THE_LINK}", 0
            decisions.append(PruneStep(name, record["step"], False, why, size))
            if not dry_run:
                delete(files, root, name)
                log_event(files, root, "deleted", folder=name, reason=f"{kind}, by hand")
    return decisions
