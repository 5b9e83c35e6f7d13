"""Before a route is looked for, a request is counted, and its body taken in."""
