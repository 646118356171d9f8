"""``python -m lamella.cli``."""

from lamella.cli import command

if __name__ == "__main__":
    command()
