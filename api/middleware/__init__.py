"""Before a route is looked for, a request is named and counted, and its body taken in."""
