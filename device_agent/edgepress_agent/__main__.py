"""`python -m edgepress_agent` is `edgepress-agent`."""

from edgepress_agent.cli import main

if __name__ == "__main__":
    main()
