"""The `millrace` command: user commands on the client, operator commands on store and billing."""
