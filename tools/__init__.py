"""Commands for contributors; no other package imports them."""
