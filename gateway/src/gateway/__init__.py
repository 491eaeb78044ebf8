"""The face of the system: REST and WebSocket, from the contract."""
