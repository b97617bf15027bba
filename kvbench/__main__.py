"""``python -m kvbench`` is the command ``kvbench``."""

from kvbench.cli.main import main

if __name__ == "__main__":
    main()
