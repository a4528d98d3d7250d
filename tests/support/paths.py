"""Where the repository and what it brings along are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "models" / "demo"
DEMO_ROUTING = ROOT / "tests" / "data" / "demo_routing.npz"
