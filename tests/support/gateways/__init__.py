"""Stand-ins of gateways and of what they run."""
