"""The page: its layout, the actions of its clicks, and its views."""
