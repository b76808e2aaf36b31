"""What the extension imports; a name of its own, since extensions share one import path."""
