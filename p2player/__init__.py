"""Applications that follow their users: the node, its protocol and its command line."""
