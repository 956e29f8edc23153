"""What was tried, counted over the whole session; `make test-doors` prints it at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.application.harness import Ended


@dataclass
class Tally:
    """Commands by the kind of fault they met."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: int = 0
    wrong_numbers: int = 0
    tracebacks: int = 0
    longest: float = 0.0

    def saw(self, command: str, fault: str, ended: Ended) -> None:
        """Counts one command that met a fault."""
        self.tried[command, fault] += 1
        self.tracebacks += "Traceback" in ended.err + ended.out
        self.longest = max(self.longest, ended.seconds)

    def lines(self) -> list[str]:
        """The table."""
        rows = [f"{count:7,}  {command}: {fault}" for (command, fault), count in sorted(self.tried.items())]
        return [
            *rows,
            f"{sum(self.tried.values()):7,}  commands in all",
            f"{self.lost:7,}  runs lost",
            f"{self.wrong_numbers:7,}  wrong numbers printed",
            f"{self.tracebacks:7,}  tracebacks",
            f"{self.longest:7.0f}  seconds took the longest command",
        ]


TALLY = Tally()
