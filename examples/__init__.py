"""Algorithms in one file each, to read and to change."""
