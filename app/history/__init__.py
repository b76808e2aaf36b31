"""History: the pictures that each browser has made, kept on disk."""

from app.history.shelf import Entry, History, Shelf, Shot

__all__ = ["Entry", "History", "Shelf", "Shot"]
