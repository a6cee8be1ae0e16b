"""The command as a module: `python -m prefmix` is `prefmix`."""

import sys

from prefmix.server.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
