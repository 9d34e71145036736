"""The Python half of a mod-wsgi-rs worker. Applications see the module `mod_wsgi`, not this package."""

__version__ = "0.1.0"
