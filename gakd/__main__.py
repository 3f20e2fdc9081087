"""`python -m gakd` is the command `gakd`: for launchers that want a module."""

from gakd.cli.command import main

if __name__ == "__main__":
    main()
