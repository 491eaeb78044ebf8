"""The API gateway: serves the contract over REST and WebSocket."""
