"""The layout of the code: folders, imports, sizes, and the functions that a request calls on its way."""
