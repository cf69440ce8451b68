"""``python -m atlas_kit`` is ``atlas-tool``."""

from atlas_kit.cli.main import main

if __name__ == "__main__":
    main()
