"""`python -m llama3_edu`: what the package can do, without writing a program."""

import sys

from llama3_edu.command_line import main

if __name__ == "__main__":
    sys.exit(main())
