"""What stands in for the API server: nginx, so that it costs little and answers at once."""
