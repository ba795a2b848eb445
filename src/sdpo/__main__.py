"""`python -m sdpo` is the `sdpo` command."""

from sdpo.cli import main

if __name__ == "__main__":
    main()
