"""`python -m dada COMMAND ...`, and `torchrun ... -m dada COMMAND ...`."""

from dada.cli import main

if __name__ == "__main__":
    main()
