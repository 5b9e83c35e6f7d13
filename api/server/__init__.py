"""What a stranger's bytes may cost a gateway's process before a route has looked at them: limits of
HTTP headers, of WebSocket messages, and of bodies on their way in or out."""
