"""What is true of CT, arrays and models. Imports neither Ray nor Kubernetes."""

from importlib.metadata import version

__version__ = version("tomoray")
