"""`python train.py --config X.yaml [--key value ...]`: the same as `ttt-moshi train`."""

import sys

from ttt_moshi.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
