"""Registries: the client of the OCI distribution spec, and a server of it."""
