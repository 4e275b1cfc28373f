"""Makes one model of the runs of `fit`, a run a stream: the folder that actiond runs.

Example:

  scripts/factory/factory assemble build/factory/runs/i3d-rgb build/factory/runs/i3d-flow --out build/i3d
"""

import argparse
from pathlib import Path

from .build import check_new
from .fit import write_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `assemble`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, one a stream")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder, which is made")


def main(args: argparse.Namespace) -> int:
    """Runs `assemble`."""
    check_new(args.out)
    write_model(args.runs, args.out)
    print(f"{args.out}: {len(args.runs)} streams")
    return 0
