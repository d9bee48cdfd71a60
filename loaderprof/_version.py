"""The version, for whoever needs it and must not import the package's public names."""

__version__ = "0.1.0"
