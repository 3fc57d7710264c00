"""Random rows through every reader: none may end in a traceback, none may be mislabelled.

    python scripts/fuzz_readers.py [--rows 2000] [--seed 0]

The test suite does the same with 200 rows a reader.
"""

import argparse
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import fuzzing  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for reader in fuzzing.ALL:
        start = time.monotonic()
        fuzz(reader, arguments.rows, arguments.seed)
        print(f"{reader.name:<34} {arguments.rows} rows, {time.monotonic() - start:.1f} s")


def fuzz(reader: fuzzing.Reader, rows: int, number: int) -> None:
    @seed(number)
    @settings(max_examples=rows, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(row=fuzzing.rows(reader))
    def every_row(row: dict[str, object]) -> None:
        fuzzing.check(reader, row, Path("nowhere"))

    every_row()


if __name__ == "__main__":
    main()
