"""Killed at five points of caches, reference errors and training, run again: the bytes of the undisturbed run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import crash  # noqa: E402


def test_killed_anywhere_it_ends_the_same(models: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    differ, phases = crash.crash(tmp_path / "runs", models["sdxl"], pairs, points=5, chain=2, seed=1)
    assert differ == 0
    assert sum(phases.values()) - phases["not hit"] >= 5
