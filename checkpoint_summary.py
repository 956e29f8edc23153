"""`python checkpoint_summary.py [options]`: the same as `ttt-moshi status`."""

import sys

from ttt_moshi.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("status", sys.argv[1:]))
