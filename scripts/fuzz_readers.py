"""Random rows through every reader: none may end in a traceback, none may be mislabelled.

    python scripts/fuzz_readers.py [--rows 2000] [--seed 0]

The test suite does the same with 200 rows a reader. Each line says what became of the rows.
"""

import argparse
import sys
import time
from collections import Counter
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
        start, seen = time.process_time(), Counter()
        fuzz(reader, arguments.rows, arguments.seed, seen)
        said = ", ".join(f"{n} {what}" for what, n in seen.most_common())
        print(f"{reader.name:<34} {arguments.rows} rows, {time.process_time() - start:.1f} s: {said}", flush=True)


def fuzz(reader: fuzzing.Reader, rows: int, number: int, seen: Counter[str]) -> None:
    @seed(number)
    @settings(max_examples=rows, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(made=fuzzing.rows(reader))
    def every_row(made: list[dict[str, object]]) -> None:
        fuzzing.check(reader, made, Path("nowhere"), seen)

    every_row()


if __name__ == "__main__":
    main()
