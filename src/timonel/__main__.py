"""`python -m timonel`."""

from .cli import main

main()
