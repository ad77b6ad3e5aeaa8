"""A slow link for one leg of a connection: a TCP proxy that delays and paces what it carries."""
