"""The trail in PostgreSQL: for hubs whose directory is there too (the extra `postgres`)."""
