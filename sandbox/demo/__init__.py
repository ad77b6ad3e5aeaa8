"""`make demo`: hub, relay and a cluster as separate processes, and a scripted session of the real kubectl."""
