"""What every Postbus service is built on: the bus, the codec, errors, identity and databases."""
