"""What is raised where a smaller network cannot be made."""


class CompactionError(RuntimeError):
    """Raised where a smaller network would not compute what the masked one does."""
