"""The pages that participants see, and the log of the ordinary page."""
