"""A TCP load balancer for several hubs, for the demo and for tests: it passes TLS on unread."""
