"""`python -m trimoe` is the `trimoe` command."""

import sys

from trimoe.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
