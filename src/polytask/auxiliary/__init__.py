"""Ready-made auxiliary tasks."""
