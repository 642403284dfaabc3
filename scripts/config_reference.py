"""Write docs/config.md, the list of all options: python scripts/config_reference.py [--check]"""

import argparse

import _root  # noqa: F401

from dada.command_line import run_script
from dada.config.reference_page import PAGE, reference
from dada.files import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say, by the exit code, whether the page is up to date")
    args = parser.parse_args()
    text = reference()
    if not args.check:
        write_whole(PAGE, text.encode())
        print(f"written: {PAGE}")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        raise ValueError(f"{PAGE} is not what dada/config/table.py says: run python scripts/config_reference.py")


if __name__ == "__main__":
    run_script(main)
