"""``python -m lamella``: the command."""

from lamella.cli import command

if __name__ == "__main__":
    command()
