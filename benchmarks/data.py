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
    mapping = sections.add_parser("mapping", help="stack-exchange-paired to preference rows, beside datasets")
    mapping.add_argument("--rows", type=int, default=100_000)
    mapping.add_argument("--rounds", type=int, default=5)
    build = sections.add_parser("build", help="the whole build at four sizes: map, dedup by question, split")
    build.add_argument("--folder", type=Path, default=Path("outputs/benchmarks"), help="where rows are generated once")
    build.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 7_435_908])
    options = vars(parser.parse_args())
    match options.pop("section"):
        case "dedup":
            from benchmarks.dedup import run
        case "mapping":
            from benchmarks.mapping import run
        case "build":
            from benchmarks.build import run
    run(**options)


if __name__ == "__main__":
    main()
