"""The model registry: registration, verification, promotion and rollback."""
