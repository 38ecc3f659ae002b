"""`python -m edgepress_host.cli`, for where the console script is not on the path."""

from edgepress_host.cli import main

main()
