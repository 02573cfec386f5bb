"""What several test modules share: checkpoints, servers, oracles."""
