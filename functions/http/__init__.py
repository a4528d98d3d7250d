"""A small HTTP/1.1 server with bounds for everything that its clients send, hold or leave unread."""
