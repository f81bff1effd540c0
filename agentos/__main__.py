"""`python -m agentos`: the same command line as `agentos`."""

from agentos.cli.main import main

if __name__ == "__main__":
    main()
