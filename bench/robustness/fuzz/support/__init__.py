"""What targets share: mutations, a tiny model, servers."""
