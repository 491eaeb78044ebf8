"""The contract generator: from proto/ to gen/."""
