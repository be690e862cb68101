"""What the generated recordings of these tests hold."""

NAMES = ("cat", "dog", "frog")
PER_CLASS = 5
