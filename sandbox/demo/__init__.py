"""`make demo`: hub, relay and a cluster as separate processes, and a scripted session with the real kubectl."""
