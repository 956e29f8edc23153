"""`python -m ttt_moshi`: the same as the `ttt-moshi` command."""

import sys

from ttt_moshi.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
