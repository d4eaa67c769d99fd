"""`python -m p2player` is the `p2player` command."""

from p2player.cli import main

main()
