"""Posts, on MongoDB."""
