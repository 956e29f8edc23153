"""Evaluates a checkpoint: the same as `ttt-moshi eval`."""

import sys

from ttt_moshi.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("eval", sys.argv[1:]))
