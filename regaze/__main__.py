"""``python -m regaze`` is the command ``regaze``."""

from regaze.cli import main

if __name__ == "__main__":
    main()
