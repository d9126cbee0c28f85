"""`python -m moectl` is the same as the `moectl` command."""

from __future__ import annotations

import sys

from moectl.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
