"""The page: its layout, what clicks do, and what it shows."""
