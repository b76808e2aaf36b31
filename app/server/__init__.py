"""HTTP around the page: launch, endpoints for programs, login, limits, metrics and logs."""
