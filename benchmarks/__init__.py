"""What Hawse costs beside its yardsticks: `python -m benchmarks --help`."""
