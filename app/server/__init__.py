"""What a service needs around the app: health, metrics, logs, limits, and an orderly end."""
