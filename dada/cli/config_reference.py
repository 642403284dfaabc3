"""Write docs/config.md, the list of all options, in a clone.

dada config-reference [--check]
"""

import argparse

from dada.config.reference_page import PAGE, reference
from dada.files import write_whole


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="only say, by the exit code, whether the page is up to date")


def main(args: argparse.Namespace) -> list[str]:
    if not PAGE.is_file():
        raise FileNotFoundError(f"there is no {PAGE}: this command is for a clone of the project")
    text = reference()
    if not args.check:
        write_whole(PAGE, text.encode())
        print(f"written: {PAGE}")
        return ["config-reference", "--check"]
    if PAGE.read_text(encoding="utf-8") != text:
        raise ValueError(f"{PAGE} is not what dada/config/table.py says: run dada config-reference")
    return ["demo", "--quick"]
