"""What a load does, or would do, with the tensors of a checkpoint and those of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ttt_moshi.checkpoint.errors import CheckpointError
from ttt_moshi.checkpoint.manifest import Record

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class LoadReport:
    """Names of tensors by what happened to them. `shape` and `dtype` hold lines that name both sides."""

    restored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shape: list[str] = field(default_factory=list)
    dtype: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether wanted and saved tensors agree exactly."""
        return not (self.missing or self.unexpected or self.shape or self.dtype)

    def text(self) -> str:
        """One line a kind, with the first names."""
        kinds = {
            "wanted but not in the checkpoint": self.missing,
            "in the checkpoint but not wanted": self.unexpected,
            "different shape": self.shape,
            "different dtype": self.dtype,
        }
        lines = [f"{len(self.restored)} tensors agree"]
        for kind, names in kinds.items():
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"{len(names)} {kind}: {', '.join(names[:5])}{more}")
        return "; ".join(lines)


class Mismatch(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """The checkpoint is intact, but its tensors are not those that the model wants. `report` has the difference."""

    def __init__(self, message: str, report: LoadReport):
        super().__init__(message)
        self.report = report


def compare(saved: Mapping[str, Record], wanted: Mapping[str, Tensor]) -> LoadReport:
    """What a load would do; `restored` are the names that agree in shape and dtype."""
    from ttt_moshi.checkpoint.dtypes import DTYPES

    report = LoadReport(unexpected=sorted(set(saved) - set(wanted)))
    for name, tensor in sorted(wanted.items()):
        entry = saved.get(name)
        if entry is None:
            report.missing.append(name)
        elif tuple(entry["shape"]) != tuple(tensor.shape):
            report.shape.append(f"{name} (saved {entry['shape']}, wanted {list(tensor.shape)})")
        elif DTYPES[entry["dtype"]] != tensor.dtype:
            report.dtype.append(f"{name} (saved {entry['dtype']}, wanted {tensor.dtype})")
        else:
            report.restored.append(name)
    return report
