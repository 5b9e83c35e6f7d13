"""Jobs that no supervisor has and that wait for a route: woken, or ended, in order."""
