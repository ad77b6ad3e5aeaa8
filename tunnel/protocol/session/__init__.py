"""What a session keeps: its phase, its streams, and what was sent about them and is not acknowledged."""
