"""The data layer's benchmarks: `python -m benchmarks.data SECTION [options]`; each prints its table and writes benchmarks/results."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Parse and call; a section's imports stay its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data")
    sections = parser.add_subparsers(dest="section", required=True)
    dedup = sections.add_parser("dedup", help="dedup engines beside their peers")
    dedup.add_argument(
        "--folder", type=Path, default=Path("outputs/benchmarks"), help="where documents are generated once"
    )
    dedup.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 7_440_000])
    dedup.add_argument("--peers-to", type=int, default=100_000, help="the largest size at which the peers run too")
    dedup.add_argument("--repeats", type=int, default=3)
    options = vars(parser.parse_args())
    if options.pop("section") == "dedup":
        from benchmarks.dedup import run

        run(**options)


if __name__ == "__main__":
    main()
