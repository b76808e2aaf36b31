"""The app: jobs, models, worker and backends make pictures; page, server and study show and serve them."""
