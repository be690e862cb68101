"""Tests, in the folders of what they test; helpers in tests/support."""
