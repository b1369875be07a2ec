"""Communication between ranks: process group, collectives and their counts, topology, heartbeat, failure detector."""
