"""`python -m repartir` is `repartir`."""

import sys

from repartir.cli import main

if __name__ == "__main__":
    sys.exit(main())
