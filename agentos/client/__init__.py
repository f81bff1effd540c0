"""The host's side of the socket: how a program or the CLI starts a kernel, finds one, and calls it."""
