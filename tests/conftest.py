"""What all tests stand on: one thread, no network, fixed examples, and tiny models that are written once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
import worlds  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> a tiny random pipeline of it in diffusers' layout. Not to be written into."""
    place = tmp_path_factory.mktemp("models")
    return {family: tiny.save(family, place / family) for family in tiny.FAMILIES}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pairs folder of twelve groups over six prompts, beside the scores and images that it was made from."""
    return worlds.pairs(tmp_path_factory.mktemp("preferences"))
