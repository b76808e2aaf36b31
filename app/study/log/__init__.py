"""The log of events: written, stored, read back, withdrawn, and mirrored to the Hub."""
