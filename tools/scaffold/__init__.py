"""`just new-service` and `just remove-service`."""
