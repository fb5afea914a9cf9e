"""`python -m transpector` is the `transpector` command."""

from transpector.cli import main

main()
