"""Jobs: what can be asked for and what is answered; no web, no network."""
