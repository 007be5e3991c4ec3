"""The version of Petriscope, for its package metadata too."""

__version__ = "0.2.0"
