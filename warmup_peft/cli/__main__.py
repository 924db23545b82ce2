"""`python -m warmup_peft.cli <command>`."""

import sys

from warmup_peft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
