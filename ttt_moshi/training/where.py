"""Which seconds of which recordings a step hears: of a run under way, or of one that is long over."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from ttt_moshi.config import TrainArgs, clip_stages
from ttt_moshi.config_io import args_from_dict
from ttt_moshi.data import ClipLoader, StreamLoader
from ttt_moshi.data.addresses import url_of
from ttt_moshi.data.corpus import Clip, Corpus
from ttt_moshi.data.digests import Digests, cache_folder
from ttt_moshi.data.remote import use_cache
from ttt_moshi.data.sources import Recording, open_sources, split_spec
from ttt_moshi.errors import UserError
from ttt_moshi.files import read_text
from ttt_moshi.frames import frames_to_seconds, seconds_to_frames
from ttt_moshi.training.feed import Layout, Stage, stage_at
from ttt_moshi.training.run_dir import RunDir, numbered_launches


@dataclass(frozen=True)
class Heard:
    """A part of a recording that a step hears.

    Args:
        position: in the order of clips of the step's stage.
        id: the clip's, as in the digest of the metrics.
        recording: the file and its transcript.
        start: seconds.
        end: seconds.
    """

    position: int
    id: str
    recording: Recording
    start: float
    end: float

    def text(self) -> str:
        """For a person."""
        return f"{self.recording.audio} {self.start:.2f}-{self.end:.2f} s"


def heard(stage: Stage, positions: Iterable[int]) -> list[Heard]:
    """What lies at some positions of a stage."""
    found = []
    for position in positions:
        clip = stage.loader.clip(position)
        end = min(clip.start + stage.clip_frames, clip.recording.frames)
        begin, end_seconds = frames_to_seconds(clip.start), frames_to_seconds(end)
        found.append(Heard(position, clip.id, clip.recording, begin, end_seconds))
    return found


def clips_of_step(
    args: TrainArgs, world_size: int, step: int, *, start_step: int = 0, start_cursor: int = 0
) -> list[Heard]:
    """Every clip of one step, in the order of positions, from the configuration alone: no model, no codec.

    Args:
        step: from 1, as in the metrics.
        start_step: steps that were done when the run, or its last resumption before this step, began.
        start_cursor: position in the order of clips at that time.

    Raises:
        DataError: the recordings cannot be read any more.
    """
    layout = Layout(0, world_size, args.batch_size, args.num_microbatches, args.train.backprop_clips)
    lengths = clip_stages(args.train.clip_schedule, args.duration_sec)
    stages = [Stage(first, _loader(args, seconds, layout), seconds_to_frames(seconds)) for first, seconds in lengths]
    stage = stage_at(stages, step - 1)
    # A stage that began after the start has counted from its own first clip.
    since, cursor = (stage.first_step, 0) if stage.first_step >= start_step else (start_step, start_cursor)
    first = cursor + (step - 1 - since) * layout.clips
    return heard(stage, range(first, first + layout.clips))


def clips_of_run(run_dir: Path, step: int) -> list[Heard]:
    """What step `step` of a run heard, by the record of the launch that made it.

    Raises:
        UserError: no launch of the run made that step.
    """
    made = [launch for launch in _launches(run_dir) if launch["start_step"] < step]
    if step < 1 or not made:
        raise UserError(f"{run_dir} has no launch that made step {step}; steps count from 1")
    launch = made[-1]
    args = args_from_dict(launch["config"])
    if step > args.max_steps:
        raise UserError(f"step {step} is beyond the {args.max_steps} steps of {run_dir}")
    if "start_cursor" not in launch:
        # Launches of earlier versions: nothing but the number of clips a step could not change what had been heard.
        layout = Layout(0, launch["world_size"], args.batch_size, args.num_microbatches, args.train.backprop_clips)
        launch["start_cursor"] = launch["start_step"] * layout.clips
    _require_lists(args.data.train_data, run_dir)
    return clips_of_step(
        args, launch["world_size"], step, start_step=launch["start_step"], start_cursor=launch["start_cursor"]
    )


def _require_lists(spec: str, run_dir: Path) -> None:
    """Raises where lists are not found from here that training found from where it was started."""
    for path, _ in split_spec(spec):
        if url_of(path) is None and not path.is_absolute() and not path.exists():
            raise UserError(
                f"no data at {path}, which {run_dir} read: the path counts from the folder in which training was "
                "started; run this command there"
            )


def recorded_digest(run_dir: Path, step: int) -> str | None:
    """What the metrics of a run say of the clips of a step (see `step.digest`); None where they do not go so far."""
    path = RunDir(run_dir).train_metrics
    if not path.is_file():
        return None
    found = None
    for line in read_text(path, errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed
        if isinstance(record, dict) and record.get("step") == step:
            found = record.get("sample_ids")
    return found


def _launches(run_dir: Path) -> list[dict[str, Any]]:
    paths = [path for _, path in numbered_launches(RunDir(run_dir))]
    if not paths:
        raise UserError(f"no run at {run_dir}: it has no `launches` folder with the records of its starts")
    found = []
    for path in paths:
        try:
            launch = yaml.safe_load(read_text(path))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        if not isinstance(launch, dict) or not {"start_step", "world_size", "config"} <= set(launch):
            raise UserError(f"{path} is no record of a launch")
        found.append(launch)
    return found


def _loader(args: TrainArgs, seconds: float, layout: Layout) -> ClipLoader | StreamLoader:
    use_cache(args.data.remote_cache_dir, args.data.remote_cache_gb)
    cache = None if args.data.code_cache_dir is None else Path(args.data.code_cache_dir)
    listing = cast(Corpus, _Listing(args.data.train_data, seconds_to_frames(seconds), cache))
    if args.train.stateful:
        return StreamLoader(listing, rows=layout.rows, seed=args.seed, shuffle=args.data.shuffle)
    return ClipLoader(listing, seed=args.seed, shuffle=args.data.shuffle)


class _Listing:
    """Of a corpus what the order of clips depends on. Nothing of it is read but headers."""

    fingerprint = ""

    def __init__(self, spec: str, clip_frames: int, cache_dir: Path | None) -> None:
        self.clip_frames = clip_frames
        self.sources = open_sources(spec, lambda folder: Digests(cache_folder(folder, cache_dir)))

    def clips(self, source: int) -> list[Clip]:
        """As `Corpus.clips`."""
        return Corpus.clips(cast(Corpus, self), source)
