"""How much a node may send, hold and leave behind at the relay."""
