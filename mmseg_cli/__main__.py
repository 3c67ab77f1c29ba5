"""`python -m mmseg_cli` is `mmseg`."""

from mmseg_cli.cli.app import main

if __name__ == "__main__":
    main()
