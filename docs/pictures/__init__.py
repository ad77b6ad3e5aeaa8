"""The program that makes README's pictures: `make pictures`."""
