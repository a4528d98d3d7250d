"""Paths of the repository and of its files for tests."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "models" / "demo"
DEMO_ROUTING = ROOT / "tests" / "data" / "demo_routing.npz"
