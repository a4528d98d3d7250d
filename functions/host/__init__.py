"""The operating system's services that functions and the control plane use: memory, threads, sockets."""
