"""A server with its client, and requests and answers of its API."""
