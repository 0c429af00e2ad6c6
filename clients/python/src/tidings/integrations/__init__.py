"""Connections to other packages. Each module needs only the package whose name it has."""
