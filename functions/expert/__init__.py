"""An expert function: a stateless HTTP server for one expert block, without torch."""
