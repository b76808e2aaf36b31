"""ConsistencySolver for A1111 and Forge: put this folder into `extensions`."""
