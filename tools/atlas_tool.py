"""Run atlas-tool from a checkout that is not installed: ``python tools/atlas_tool.py inspect FILE``."""

import sys

sys.path.insert(0, __file__.rsplit("tools", 1)[0] or ".")
sys.exit(__import__("atlas_kit.cli.main", fromlist=["main"]).main())
