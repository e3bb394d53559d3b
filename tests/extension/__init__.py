"""Parts of one's own: each file is a room that no other room knows of (see test_extension.py)."""
