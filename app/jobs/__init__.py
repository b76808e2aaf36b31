"""Jobs: the requests for pictures, the events that answer them, and the files that describe them."""
