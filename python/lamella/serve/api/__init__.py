"""Messages of containerd's API: code generated from protos/ by ``make serve-api``."""
