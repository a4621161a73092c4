"""Who does it: the daemon with its network, peers, jobs, store, API and CLI."""
