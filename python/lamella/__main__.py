"""``python -m lamella``: the command."""

import sys

from lamella.cli import main

if __name__ == "__main__":
    sys.exit(main())
