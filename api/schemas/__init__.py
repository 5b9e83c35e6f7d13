"""Bodies of requests and answers, a file a domain."""
