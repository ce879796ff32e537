"""edit."""


def edit() -> None:
    """Edit."""
