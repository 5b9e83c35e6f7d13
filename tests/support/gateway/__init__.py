"""The gateway in this process or served, and stand-ins for its neighbours."""
