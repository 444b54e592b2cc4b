"""What a session found, rendered for people and machines; pure functions on values."""
