"""`python -m sab`."""

import sys

from sab.cli import main

if __name__ == "__main__":
    sys.exit(main())
