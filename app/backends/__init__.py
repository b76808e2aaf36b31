"""Other ways to run the worker than in this process; each looks like `app.backend.Backend`."""
