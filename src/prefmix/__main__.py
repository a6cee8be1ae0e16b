"""The command as a module: `python -m prefmix` is `prefmix`."""

import os
import sys

# `python -m` puts the working directory first, where a user's torch.py or yaml.py would be taken
# for the package. The command itself adds the directory where it looks for rewards.
if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from prefmix.server.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
