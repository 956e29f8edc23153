"""`python test_checkpoint_verification.py [options]`: the same as `ttt-moshi verify`."""

import sys

from ttt_moshi.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("verify", sys.argv[1:]))
