"""`python -m slicewise`: the command line."""

from slicewise.cli import main

main()
